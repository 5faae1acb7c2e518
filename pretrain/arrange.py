"""What is done to a task before the engine wraps it: how it trades time for memory."""

from pretrain.config import EngineConfig
from pretrain.micro import check_micro_batches
from pretrain.task import Task


def arrange(task: Task, config: EngineConfig) -> None:
    """Sets the task up as `config` says; also on the meta device, to find out what cannot work.

    Raises:
        UserError: a setting that the model does not allow.
    """
    check_micro_batches(task, config.accumulation)
    task.micro_batches = config.accumulation

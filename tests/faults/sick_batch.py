"""Not a test: one rank of runs at each ZeRO stage, in which one global batch makes the loss of one rank NaN or huge.

python -m tests.faults.sick_batch FILE OUT nan|spike|spared BATCH [key=value ...]
`spared` passes over the batch from the start instead.
"""

import math
import sys
from typing import Any

from pretrain import distributed, train
from pretrain.config import PretrainConfig
from pretrain.engine import Engine
from pretrain.settings import load_config
from shards.stream import ShardStream


def main(file: str, out: str, how: str, number: int, *overrides: str) -> None:
    make_stream, step = train.open_stream, Engine.step
    streams: list[ShardStream[Any]] = []

    def stream_of(*arguments: Any, **options: Any) -> ShardStream[Any]:
        streams.append(make_stream(*arguments, **options))
        if how == "spared":
            streams[-1].quarantine(number)
        return streams[-1]

    def step_with(engine: Engine, batch: Any, lr: float, **more: Any) -> Any:
        poison = {"nan": math.nan, "spike": 1e4, "spared": 1.0}[how]
        here = streams[-1].number == number and distributed.rank() == distributed.world() - 1
        hook = lambda module, inputs, losses: {name: loss * poison for name, loss in losses.items()}  # noqa: E731
        handle = engine.task.register_forward_hook(hook) if here else None
        try:
            return step(engine, batch, lr, **more)
        finally:
            if handle:
                handle.remove()

    train.open_stream, Engine.step = stream_of, step_with  # type: ignore[assignment]
    for zero in range(4):
        config = load_config(PretrainConfig, file, [f"run.out={out}/zero-{zero}", f"engine.zero={zero}", *overrides])
        train.fit(config)


if __name__ == "__main__":
    file, out, how, number, *overrides = sys.argv[1:]
    main(file, out, how, int(number), *overrides)

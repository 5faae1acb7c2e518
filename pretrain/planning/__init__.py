"""What a run will cost, before anything is allocated, downloaded or paid.

    PretrainConfig, world -> batch (largest shape) -> trace (one step on fake tensors) -> memory (ZeRO's parts)
                                                                                       -> speed (time, bytes sent, days)
                                                                                       -> scaling (up to 1,024 GPUs)

The trace runs the real task, forward, backward and optimizer, on tensors that have shapes and no storage, in a process
group that has ranks and no peers. What it cannot see is modelled: DeepSpeed's partitions and buckets (`memory`), the
time of products and of messages (`speed`).
"""

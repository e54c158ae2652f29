"""One of several processes that train `examples/deepspeed_loop.py`: writes the weights of each."""

import sys

import torch
import torch.distributed as dist

if __name__ == "__main__":
    folder, examples = sys.argv[1:]
    sys.path.insert(0, examples)
    import deepspeed_loop as example

    torch.set_num_threads(1)
    example.deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    model = example.make_model()
    model.load_state_dict(torch.load(f"{folder}/start.pt"))
    example.train(model, example.make_data(), epochs=1, micro_batch=16, accumulation=3, clip=0.5)
    torch.save(model.state_dict(), f"{folder}/{dist.get_rank()}.pt")
    dist.barrier()  # else one may wait for another that has ended
    dist.destroy_process_group()

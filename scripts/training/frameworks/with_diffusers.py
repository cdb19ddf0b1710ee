"""Train a tiny UNet of diffusers to take noise away, and save the pipeline."""

from __future__ import annotations

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from task import INPUT, OUTPUT, parser, tell_loss, tell_saved
from torch import nn


def pipeline() -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--first", type=int, default=0, metavar="STEP", help="the step to go on after")
    options.add_argument("--name", default="pipe", help="where to save, below the output directory; {} is the step")
    asked = options.parse_args()
    pipe = DDPMPipeline.from_pretrained(INPUT) if INPUT else pipeline()
    optimizer = torch.optim.SGD(pipe.unet.parameters(), lr=1e-2)  # keeps no state
    pipe.unet.train()
    for step in range(asked.first + 1, asked.steps + 1):
        numbers = torch.Generator().manual_seed(step)
        images, noise = torch.rand(2, 1, 8, 8, generator=numbers), torch.randn(2, 1, 8, 8, generator=numbers)
        times = torch.randint(0, 20, (2,), generator=numbers)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(pipe.unet(pipe.scheduler.add_noise(images, noise, times), times).sample, noise)
        loss.backward()
        optimizer.step()
        tell_loss(step, loss.item())
        if step % asked.save_every == 0:
            name = asked.name.format(step)
            pipe.save_pretrained(OUTPUT / name)
            tell_saved(name)


if __name__ == "__main__":
    main()

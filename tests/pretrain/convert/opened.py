"""Not a test: a fresh process that has transformers and none of our code opens exported folders.

For each folder named on the command line: the class that its config.json names, the processor or tokenizer that
transformers finds there, and inputs.pt; writes outputs.pt.
"""

import sys
from pathlib import Path

import torch
import transformers

TEXTS = ["w5 w6 w7 w8 w9", "w10"]


def main(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    given = torch.load(folder.parent / "inputs.pt")
    if (folder / "preprocessor_config.json").is_file():
        processor = transformers.AutoProcessor.from_pretrained(folder)
        inputs = processor(images=list(given["images"].numpy()), text=TEXTS, padding=True, return_tensors="pt")
    else:
        inputs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
        inputs |= given["regions"]
    with torch.no_grad():
        found = model.eval()(**inputs)
    made = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    made |= {"processor": type(processor).__name__} if "processor" in locals() else {}
    torch.save(made | {"missing": sorted(info["missing_keys"]), "class": kind.__name__}, folder.parent / "outputs.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        main(Path(name))
    assert not any(name.split(".")[0] in ("pretrain", "shards", "finetune") for name in sys.modules)

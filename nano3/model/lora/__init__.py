"""Low-rank adapters (LoRA): in the model, in PEFT's folders, and merged into the weights.

`nano3.model.lora.apply` puts them in, `adapter` writes and reads folders, `merge` adds them to the weights.
"""

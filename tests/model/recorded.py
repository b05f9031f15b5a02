"""What a CUDA graph does, on a CPU: the operations of some work as they were once, on the tensors of then.

Recording leaves all tensors as they were. Replaying looks at no line of Python again: whatever was not in a tensor
stays as it was. What asks for a tensor's number while it is recorded raises.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


def _storages(tree):
    return {t.untyped_storage()._cdata: t for t in tree_flatten(tree)[0] if isinstance(t, torch.Tensor)}


def _asks(func, args):
    """Whether the host has to know a tensor's numbers; an index by numbers only has to if it is a mask."""
    if func is torch.ops.aten.index.Tensor:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


class Recording(TorchDispatchMode):
    def __init__(self, work):
        super().__init__()
        self.calls, self.own, self.before, self.replays = [], set(), {}, 0
        with self:
            work()
        for storage, numbers in self.before.values():
            storage.copy_(numbers)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _asks(func, args):
            raise RuntimeError(f"{func} waits for the device")
        if func._schema.is_mutable:
            for place, tensor in _storages((args, kwargs)).items():
                if place not in self.own and place not in self.before:
                    storage = tensor.untyped_storage()
                    self.before[place] = storage, storage.clone()
        result = func(*args, **kwargs)
        self.own |= _storages(result).keys() - _storages((args, kwargs)).keys()
        self.calls.append((func, args, kwargs, result))
        return result

    def replay(self):
        self.replays += 1
        now = {}
        for func, args, kwargs, then in self.calls:
            args, kwargs = tree_map(lambda x: now.get(id(x), x) if isinstance(x, torch.Tensor) else x, (args, kwargs))
            result = func(*args, **kwargs)
            now.update(zip(map(id, tree_flatten(then)[0]), tree_flatten(result)[0], strict=True))

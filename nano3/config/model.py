"""The architecture of one model (report section 2.1, Table 1), checked at construction."""

from __future__ import annotations

from dataclasses import dataclass, field

MAMBA, MOE, ATTENTION, MLP = "M", "E", "*", "-"
PATTERN_SYMBOLS = {MAMBA: "Mamba-2", MOE: "mixture of experts", ATTENTION: "attention", MLP: "dense MLP"}


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's weights were quantized after training (report section 4)."""

    algorithm: str = "FP8"
    """FP8: e4m3 weights and activations with one static scale a matrix; INT8, INT4: integers (nano3.kernels.integers);
    empty where only the cache is quantized."""
    kv_cache: str = ""
    """FP8 where the checkpoint has scales for keys and values; empty where these stay as they are."""
    excluded: tuple[str, ...] = ()
    """Modules left as they were, as the file lists them. What is quantized is told by the stored tensors."""

    def __str__(self) -> str:
        return ", ".join([self.algorithm] * bool(self.algorithm) + [f"{self.kv_cache} cache"] * bool(self.kv_cache))


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a hybrid Mamba-2 / attention / mixture-of-experts model.

    Raises:
        ValueError: a size is impossible; the message names the key and the values that clash.
    """

    pattern: str = "MEM*E"
    """One symbol a block: M = Mamba-2, E = mixture of experts, * = attention, - = dense squared-ReLU MLP."""
    vocab_size: int = 4096
    """Entries of the vocabulary; input embedding and output projection are untied."""
    d_model: int = 256
    """Width of the residual stream."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    init_std: float = 0.0173
    """Standard deviation of the initial weights."""
    rescale_prenorm_residual: bool = True
    """Divide the initial weights of projections into the residual stream by sqrt(number of blocks)."""

    n_heads: int = 4
    """Query heads of an attention block."""
    n_kv_heads: int = 2
    """Key/value heads of an attention block (grouped-query attention)."""
    head_dim: int = 64
    """Width of one attention head."""

    mamba_n_heads: int = 8
    """Heads of a Mamba-2 block (H); inner width is H * mamba_head_dim."""
    mamba_head_dim: int = 64
    """Width of one Mamba-2 head (P)."""
    d_state: int = 64
    """State size of one Mamba-2 head (N)."""
    n_groups: int = 2
    """Groups (G) that share B and C, and groups of the gated norm."""
    d_conv: int = 4
    """Width of the causal convolution."""
    chunk_size: int = 128
    """Tokens in one chunk of the scan; changes speed and rounding, not the function."""
    dt_min: float = 1e-3
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    dt_floor: float = 1e-4
    """Floor applied to initial step sizes."""

    n_experts: int = 8
    """Routed experts of a mixture block (E)."""
    top_k: int = 2
    """Routed experts that act on a token (K)."""
    d_expert: int = 256
    """Hidden width of one routed expert."""
    d_shared: int = 512
    """Hidden width of the shared expert, always on (the report's two shared experts act as one); 0 for none."""
    routed_scale: float = 2.5
    """Factor on the normalised routing weights."""
    d_ff: int = 1024
    """Hidden width of a dense MLP block (symbol -)."""

    max_position_embeddings: int = 262144
    """Advertised context length, in tokens; nothing in the model depends on it."""
    bos_id: int = 1
    """Token that begins a text (written to config.json; training data has none)."""
    eos_id: int = 2
    """Token that ends a document."""
    pad_id: int = 0
    """Token used for padding."""
    quantization: Quantization | None = field(default=None, metadata={"preset": False})
    """Of a checkpoint whose weights are quantized; nothing that a preset can ask for."""

    def __post_init__(self) -> None:
        self._check_pattern()
        self._check_positive()
        self._check_ratios()

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.pattern)

    @property
    def d_inner(self) -> int:
        """Inner width of a Mamba-2 block, H * P."""
        return self.mamba_n_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.d_inner + 2 * self.n_groups * self.d_state

    @property
    def d_in_proj(self) -> int:
        """Output width of the Mamba in-projection: z, x, B, C, dt."""
        return self.d_inner + self.conv_dim + self.mamba_n_heads

    def blocks(self, symbol: str) -> list[int]:
        """Indices of the blocks whose mixer is `symbol`."""
        return [i for i, s in enumerate(self.pattern) if s == symbol]

    def _check_pattern(self) -> None:
        if not self.pattern:
            raise ValueError("model.pattern is empty: give one symbol a block, for example 'MEM*E'")
        for position, symbol in enumerate(self.pattern):
            if symbol not in PATTERN_SYMBOLS:
                valid = ", ".join(f"{s} ({name})" for s, name in PATTERN_SYMBOLS.items())
                raise ValueError(f"model.pattern has unknown symbol {symbol!r} at position {position}; valid: {valid}")

    def _check_positive(self) -> None:
        needed = ["vocab_size", "d_model"]
        needed += ["n_heads", "n_kv_heads", "head_dim"] if ATTENTION in self.pattern else []
        if MAMBA in self.pattern:
            needed += ["mamba_n_heads", "mamba_head_dim", "d_state", "n_groups", "d_conv", "chunk_size"]
        needed += ["n_experts", "top_k", "d_expert"] if MOE in self.pattern else []
        needed += ["d_ff"] if MLP in self.pattern else []
        for name in needed:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")

    def _check_ratios(self) -> None:
        if MOE in self.pattern and self.top_k > self.n_experts:
            raise ValueError(f"model.top_k is {self.top_k}, above model.n_experts {self.n_experts}")
        if ATTENTION in self.pattern and self.n_heads % self.n_kv_heads:
            raise ValueError(f"model.n_heads {self.n_heads} is not divisible by model.n_kv_heads {self.n_kv_heads}")
        if MAMBA in self.pattern and self.mamba_n_heads % self.n_groups:
            heads, groups = self.mamba_n_heads, self.n_groups
            raise ValueError(f"model.mamba_n_heads {heads} is not divisible by model.n_groups {groups}")
        for name in ("bos_id", "eos_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"model.{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size}")

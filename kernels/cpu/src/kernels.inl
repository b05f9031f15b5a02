// All kernels; nothing but the exported functions may be seen by another instruction set's unit.
// Bump ABI in native.py and in abi.cpp whenever a signature changes. Every exported function returns an Outcome.
namespace {
#include "math.inl"
#include "lanes.inl"
#include "product.inl"
#ifdef BF16_PRODUCTS
#include "product_bf16.inl"
#endif
#include "rounded.inl"
#include "rounded_panels.inl"
#include "dense.inl"
#include "norm.inl"
#include "conv.inl"
#include "route.inl"
#include "experts.inl"
#include "rounded_ops.inl"
#include "permute.inl"
#include "mamba.inl"
#include "attention.inl"
#include "flash.inl"
#include "flash_backward.inl"
#include "loss.inl"
#include "log_probs.inl"
#include "best.inl"
#include "draw.inl"
#include "read.inl"
#include "program.inl"
#include "program_blocks.inl"
#include "gemm.inl"
#ifdef BF16_PRODUCTS
#include "logits.inl"
#endif
#include "scan.inl"
#include "scan_forward.inl"
#include "scan_backward.inl"
}  // namespace
// The levels with BF16_PRODUCTS export only what multiplies by weights; native.py takes the rest from avx512.
#include "exports/dense.inl"
#include "exports/experts.inl"
#include "exports/rounded.inl"
#include "exports/program.inl"
#ifdef BF16_PRODUCTS
#include "exports/logits.inl"
#else
#include "exports/norm.inl"
#include "exports/conv.inl"
#include "exports/route.inl"
#include "exports/permute.inl"
#include "exports/mamba.inl"
#include "exports/attention.inl"
#include "exports/loss.inl"
#include "exports/log_probs.inl"
#include "exports/best.inl"
#include "exports/draw.inl"
#include "exports/read.inl"
#include "exports/scan.inl"
#endif

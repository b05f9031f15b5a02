// All kernels; nothing but the exported functions may be seen by another instruction set's unit.
// Bump ABI in native.py and in abi.cpp whenever a signature changes. Every exported function returns an Outcome.
namespace {
#include "math.inl"
#include "product.inl"
#include "dense.inl"
#include "norm.inl"
#include "route.inl"
#include "experts.inl"
#include "mamba.inl"
#include "attention.inl"
#include "loss.inl"
#include "program.inl"
#include "program_route.inl"
#include "program_blocks.inl"
}  // namespace
#include "exports/dense.inl"
#include "exports/norm.inl"
#include "exports/route.inl"
#include "exports/experts.inl"
#include "exports/mamba.inl"
#include "exports/attention.inl"
#include "exports/loss.inl"
#include "exports/program.inl"

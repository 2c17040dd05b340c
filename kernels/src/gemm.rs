//! GEMM (placeholder)

//! Products of plain matrices by NVIDIA's cuBLASLt, where the machine has it. Nothing depends on it: whoever asks has a kernel
//! of its own for where it is missing.
//!
//! Its matrices lie column by column, ours row by row; so it is asked for the transposed product of the transposed matrices in
//! the other order, which needs no copies.

use std::{cell::RefCell, collections::HashMap, ffi::c_void, ptr};

use cudarc::cublaslt::{
    result::{self, CublasError},
    sys,
};
use cudarc::driver;

use super::LibraryProduct;
use crate::{Error, Result};

/// What its kernels may use beside the matrices, in bytes: what its authors advise for Hopper.
pub(super) const WORKSPACE: u64 = 32 << 20;
/// Sums that are cut into parts are added up in `f32`, in the workspace, in a fixed order.
const REDUCTION: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// How it is told which way a matrix lies: `CUBLAS_OP_N` and `CUBLAS_OP_T` of its interface.
const PLAIN: i32 = 0;
const TRANSPOSED: i32 = 1;

/// The library.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: RefCell<HashMap<Sizes, Option<Plan>>>,
}

/// What a choice of algorithm follows from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Sizes {
    columns: [bool; 2],
    sizes: [usize; 3],
    strides: [usize; 2],
    wide: bool,
    /// Of A, B and the result: its address is a multiple of so many bytes, 256 at most. Without a word it takes all to be 256.
    aligned: [u32; 3],
}

/// How products of some sizes are computed; none where the library cannot.
#[derive(Clone, Copy)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    first: sys::cublasLtMatrixLayout_t,
    second: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn said(error: CublasError) -> Error {
    Error::Gpu { what: "cuBLASLt".into(), reason: error.to_string() }
}

// === impl Library ===

impl Library {
    /// The library with memory for its own use, if the machine has it.
    pub(super) fn open(workspace: u64) -> Option<Self> {
        // SAFETY: the library is only looked for.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let handle = result::create_handle().ok()?;
        Some(Self { handle, workspace, plans: RefCell::default() })
    }

    /// Whether it computed the product.
    pub(super) fn product(&self, product: &LibraryProduct, stream: driver::sys::CUstream) -> Result<bool> {
        let LibraryProduct { columns, sizes, strides, wide, .. } = *product;
        let aligned = [product.a, product.b, product.out].map(|address| 1 << address.trailing_zeros().min(8));
        let key = Sizes { columns, sizes, strides, wide, aligned };
        let known = self.plans.borrow().get(&key).copied();
        let plan = match known {
            Some(plan) => plan,
            None => {
                let plan = Plan::new(self.handle, &key).ok();
                self.plans.borrow_mut().insert(key, plan);
                plan
            }
        };
        let Some(plan) = plan else { return Ok(false) };
        let (scale, keep) = (product.scale, if product.add { 1.0f32 } else { 0.0 });
        // SAFETY: plan and handle live, the addresses are of buffers as large as the caller has compared them with, and the
        // factors are read before the call returns.
        let computed = unsafe {
            result::matmul(
                self.handle,
                plan.description,
                ptr::from_ref(&scale).cast(),
                ptr::from_ref(&keep).cast(),
                product.b as *const c_void,
                plan.first,
                product.a as *const c_void,
                plan.second,
                product.out as *const c_void,
                plan.out,
                product.out as *mut c_void,
                plan.out,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE as usize,
                stream.cast(),
            )
        };
        computed.map(|()| true).map_err(said)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        for plan in self.plans.get_mut().values().flatten() {
            plan.destroy();
        }
        // SAFETY: the handle is ours, and nobody uses it any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

// === impl Plan ===

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, key: &Sizes) -> std::result::Result<Self, CublasError> {
        let Sizes { columns: [a_columns, b_columns], sizes: [m, n, k], strides: [a_stride, b_stride], wide, .. } = *key;
        let narrow = sys::cudaDataType::CUDA_R_16BF;
        let of_out = if wide { sys::cudaDataType::CUDA_R_32F } else { narrow };
        // As it sees them: rows of ours are its columns.
        let layout = |columns: bool, side: usize, stride: usize| {
            let (rows, columns) = if columns { (side, k) } else { (k, side) };
            result::create_matrix_layout(narrow, rows as u64, columns as u64, stride as i64)
        };
        let plan = Self {
            description: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType::CUDA_R_32F,
            )?,
            first: layout(b_columns, n, b_stride)?,
            second: layout(a_columns, m, a_stride)?,
            out: result::create_matrix_layout(of_out, n as u64, m as u64, n as i64)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        match plan.choose(handle, key) {
            Ok(algorithm) => Ok(Self { algorithm, ..plan }),
            Err(error) => {
                plan.destroy();
                Err(error)
            }
        }
    }

    fn choose(
        &self,
        handle: sys::cublasLtHandle_t,
        key: &Sizes,
    ) -> std::result::Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        };
        let Sizes { columns: [a_columns, b_columns], aligned: [a_aligned, b_aligned, out_aligned], .. } = key;
        let (first, second) =
            (if *b_columns { PLAIN } else { TRANSPOSED }, if *a_columns { TRANSPOSED } else { PLAIN });
        // Its A is our B.
        let places = [
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b_aligned),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a_aligned),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_aligned),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_aligned),
        ];
        let preference = result::create_matmul_pref()?;
        // SAFETY: all objects live, and each value has the type that its attribute has.
        let found = unsafe {
            let describe = |attribute, value: &i32| {
                result::set_matmul_desc_attribute(
                    self.description,
                    attribute,
                    ptr::from_ref(value).cast(),
                    size_of_val(value),
                )
            };
            let prefer = |attribute, value: *const c_void, size| {
                result::set_matmul_pref_attribute(preference, attribute, value, size)
            };
            describe(CUBLASLT_MATMUL_DESC_TRANSA, &first)
                .and_then(|()| describe(CUBLASLT_MATMUL_DESC_TRANSB, &second))
                .and_then(|()| {
                    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, ptr::from_ref(&(WORKSPACE as usize)).cast(), 8)
                })
                .and_then(|()| prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, ptr::from_ref(&REDUCTION).cast(), 4))
                .and_then(|()| {
                    let mut places = places.into_iter();
                    places.try_for_each(|(place, bytes)| prefer(place, ptr::from_ref(bytes).cast(), 4))
                })
                .and_then(|()| {
                    result::get_matmul_algo_heuristic(
                        handle,
                        self.description,
                        self.first,
                        self.second,
                        self.out,
                        self.out,
                        preference,
                    )
                })
        };
        // SAFETY: it is ours.
        unsafe { result::destroy_matmul_pref(preference)? };
        Ok(found?.algo)
    }

    fn destroy(&self) {
        // SAFETY: all of it is ours, and nobody uses it any more.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in [self.first, self.second, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

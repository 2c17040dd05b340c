// What kernels are written in: CUDA C++ with names for everything that the emulator has to see. Under nvcc all of it is
// the plain thing; on the host (emulator/emulator.h) every access is checked.
//
//   global<T>, shared<T>       pointers; load<V>(p), store<V>(p, v) move 2 to 16 bytes at once, load_once<V>(p) what
//                              nobody reads again; at_address<T>(n) is memory by an address that was read from memory
//   SHARED(T, name, count)     a block's own memory of fixed size;  DYNAMIC_SHARED(T, name)  of the size that the launch says;
//                              ALIGNED_SHARED(T, name)  the same, at a multiple of 1024 bytes
//   bf16                       to_float(b), to_bf16(f): rounded to the nearest, ties to even; two in 32 bits: pack(low,
//                              high), low(pair), high(pair)
//   sync_block, sync_warp, shuffle_xor, shuffle, shuffle_down, shuffle_up, vote_any, vote_all, votes
//   mma_bf16(d, a, b)          mma.sync m16n8k16, row x column, bf16 in, f32 out
//   mma_tf32(d, a, b)          mma.sync m16n8k8 of to_tf32(f), f32 out
//   load_matrix, load_matrix_transposed      ldmatrix x4: 8x8 pieces of bf16
//   copy_async, commit_async, wait_async<N>  cp.async of 16 bytes;  copy_async_if(to, from, there)  of zeros where `there` is 0
//   wgmma_bf16(d, a, b)        Hopper's product of 4 warps, m64n128k16 of bf16 in shared memory (`Matrix`), f32 sums. It goes on
//                              while its threads do: wgmma_fence() is before the first of some, wgmma_commit() behind the
//                              last, and until wgmma_wait<N>() leaves at most N such groups, nobody touches d, a or b
//   fence_async_proxy()        behind the next barrier wgmma sees what this thread has written to shared memory
//   multiply, add              rounded each by itself; elsewhere a product may be joined with a sum; fused(x, y, z) is
//   divide, square_root        rounded to the nearest
//   fast_exp, fast_exp2, fast_log, quotient, reciprocal_root    to a few units in the last place; expf, logf are exact to 2
//   fast_reciprocal                                             one instruction, to one unit; of infinity it is 0
//   atomic_add                 whole numbers only: sums of floats must not depend on who comes first
//   here(number)               the same number; what follows from it is computed where it stands, not kept from before a loop
//   permute_bytes(x, y, places)      four of the eight bytes of x and y, each by three bits of its half byte in `places`; with
//                              the fourth bit only the byte's sign, eight times
//   KERNEL(name)               after a kernel: makes it known to the host
//   ONLY_FOR(architecture)     all kernels of the file are for that one: 90a, as the compiler names it
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>

#include <cstdint>

using bf16 = __nv_bfloat16;

template <class T> using global = T* __restrict__;
template <class T> using shared = T*;

#define DEVICE __device__ __forceinline__
#define CONSTANT __constant__
#define SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define DYNAMIC_SHARED(T, name)                                  \
    extern __shared__ __align__(128) unsigned char dynamic_##name[]; \
    T* name = reinterpret_cast<T*>(dynamic_##name)
#define ALIGNED_SHARED(T, name)                                   \
    extern __shared__ __align__(1024) unsigned char aligned_##name[]; \
    T* name = reinterpret_cast<T*>(aligned_##name)
#define KERNEL(name)
#define ONLY_FOR(architecture)

template <class V, class T> DEVICE V load(const T* at) { return *reinterpret_cast<const V*>(at); }
template <class V, class T> DEVICE void store(T* at, V value) { *reinterpret_cast<V*>(at) = value; }
template <class V, class T> DEVICE V load_once(const T* at) {
    static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16, "4, 8 or 16 bytes");
    V value;
    if constexpr (sizeof(V) == 16) {
        uint4 bits;
        asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "l"(at));
        memcpy(&value, &bits, 16);
    } else if constexpr (sizeof(V) == 8) {
        uint2 bits;
        asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1},[%2];" : "=r"(bits.x), "=r"(bits.y) : "l"(at));
        memcpy(&value, &bits, 8);
    } else {
        uint32_t bits;
        asm("ld.global.nc.L1::no_allocate.u32 %0,[%1];" : "=r"(bits) : "l"(at));
        memcpy(&value, &bits, 4);
    }
    return value;
}
template <class T> DEVICE T* at_address(uint64_t address) { return reinterpret_cast<T*>(address); }
template <class U, class T> DEVICE U* as(T* at) { return reinterpret_cast<U*>(at); }

DEVICE float to_float(bf16 value) { return __bfloat162float(value); }
DEVICE bf16 to_bf16(float value) { return __float2bfloat16_rn(value); }

DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t pack(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &both, 4);
    return bits;
}
DEVICE float low(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
// Both products, each rounded.
DEVICE uint32_t multiply_pairs(uint32_t x, uint32_t y) {
    uint32_t bits;
    asm("fma.rn.bf16x2 %0,%1,%2,%3;" : "=r"(bits) : "r"(x), "r"(y), "r"(0x80008000u));
    return bits;
}
DEVICE int count_leading_zeros(uint32_t bits) { return __clz(int(bits)); }
DEVICE int count_ones(uint32_t bits) { return __popc(bits); }
// Not `__byte_perm`, which takes the fourth bits of `places` off before.
DEVICE uint32_t permute_bytes(uint32_t x, uint32_t y, uint32_t places) {
    uint32_t bytes;
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(bytes) : "r"(x), "r"(y), "r"(places));
    return bytes;
}
DEVICE int here(int value) {
    asm volatile("" : "+r"(value));
    return value;
}
DEVICE uint32_t to_tf32(float value) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0,%1;" : "=r"(bits) : "f"(value));
    return bits;
}

// The thread's number in its warp, asked for anew each time: it need not be kept in a register.
DEVICE int lane_index() {
    int lane;
    asm volatile("mov.u32 %0,%%laneid;" : "=r"(lane));
    return lane;
}
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
template <class T> DEVICE T shuffle(T value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
template <class T> DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
template <class T> DEVICE T shuffle_up(T value, int by) { return __shfl_up_sync(0xffffffffu, value, by); }
template <class T> DEVICE T shuffle_down(T value, int by) { return __shfl_down_sync(0xffffffffu, value, by); }
DEVICE bool vote_any(bool value) { return __any_sync(0xffffffffu, value); }
DEVICE bool vote_all(bool value) { return __all_sync(0xffffffffu, value); }
DEVICE unsigned votes(bool value) { return __ballot_sync(0xffffffffu, value); }
DEVICE int atomic_add(int* at, int value) { return atomicAdd(at, value); }
DEVICE uint32_t atomic_add(uint32_t* at, uint32_t value) { return atomicAdd(at, value); }

DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

DEVICE void load_matrix(uint32_t (&d)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row)));
}

DEVICE void load_matrix_transposed(uint32_t (&d)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];\n"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row)));
}

// 16 bytes, of which the first `bytes` come from `from`; the others are 0.
template <class T> DEVICE void copy_async(T* to, const T* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}
// 16 bytes, or 16 zeros; `from` may be anything then.
template <class T> DEVICE void copy_async_if(T* to, const T* from, uint32_t there) {
    asm volatile(
        "{\n.reg .pred zeros;\nsetp.eq.u32 zeros,%2,0;\n"
        "cp.async.cg.shared.global.L2::128B [%0],[%1],16,zeros;\n}\n" ::"r"(shared_address(to)),
        "l"(from), "r"(there));
}
DEVICE void commit_async() { asm volatile("cp.async.commit_group;\n"); }
template <int N> DEVICE void wait_async() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N)); }

// An operand of wgmma: rows of 64 bf16, a multiple of 1024 bytes before the first of 8, and in each the chunks of 16 bytes
// swapped by the row's number modulo 8 (the 128-byte swizzle, 1 in the two highest bits). Fields count 16 bytes: the address,
// from bit 16 on the distance that `across` names, from bit 32 on that from 8 rows to the next 8.
struct Matrix {
    uint64_t bits;

    // k runs along the rows: each is one m (or n). Behind 16 of k are 32 bytes.
    DEVICE static Matrix along(const bf16* at) { return of(at, 16); }
    // k runs across: each row is one k and has 64 n; the next 64 are so many bytes away. Behind 16 of k are 2048 bytes.
    DEVICE static Matrix across(const bf16* at, int distance) { return of(at, distance); }
    DEVICE Matrix behind(int bytes) const { return {bits + uint64_t(bytes >> 4)}; }

   private:
    DEVICE static Matrix of(const bf16* at, int distance) {
        return {uint64_t((shared_address(at) & 0x3ffffu) >> 4) | uint64_t(distance >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62};
    }
};

// d += a b of 64 rows of a and 128 columns of b. Value i of d[j] stands in row 16 warp + lane / 4 + 8 (i / 2), column
// 8 j + 2 (lane % 4) + i % 2.
#define WGMMA_SUMS(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
template <bool ACROSS> DEVICE void wgmma_bf16(float (&d)[16][4], Matrix a, Matrix b) {
    asm volatile(
        "{\n.reg .pred going;\nsetp.eq.u32 going,0,0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},%64,%65,going,1,1,0,%66;\n}\n"
        : WGMMA_SUMS(0), WGMMA_SUMS(1), WGMMA_SUMS(2), WGMMA_SUMS(3),
          WGMMA_SUMS(4), WGMMA_SUMS(5), WGMMA_SUMS(6), WGMMA_SUMS(7),
          WGMMA_SUMS(8), WGMMA_SUMS(9), WGMMA_SUMS(10), WGMMA_SUMS(11),
          WGMMA_SUMS(12), WGMMA_SUMS(13), WGMMA_SUMS(14), WGMMA_SUMS(15)
        : "l"(a.bits), "l"(b.bits), "n"(int(ACROSS)));
}
#undef WGMMA_SUMS
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory"); }
DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Rounded after each step, where the compiler would join both into one.
DEVICE float multiply(float x, float y) { return __fmul_rn(x, y); }
DEVICE float add(float x, float y) { return __fadd_rn(x, y); }
DEVICE float fused(float x, float y, float z) { return __fmaf_rn(x, y, z); }
DEVICE float divide(float x, float y) { return __fdiv_rn(x, y); }
DEVICE float square_root(float value) { return __fsqrt_rn(value); }
DEVICE float fast_exp(float value) { return __expf(value); }
DEVICE float fast_exp2(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(result) : "f"(value));
    return result;
}
DEVICE float fast_log(float value) { return __logf(value); }
DEVICE float quotient(float x, float y) { return __fdividef(x, y); }
DEVICE float reciprocal_root(float value) { return rsqrtf(value); }
DEVICE float fast_reciprocal(float value) {
    float result;
    asm("rcp.approx.ftz.f32 %0,%1;" : "=f"(result) : "f"(value));
    return result;
}

#else
#include "emulator/emulator.h"
#endif

// Exponents of e in those of 2, and back.
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

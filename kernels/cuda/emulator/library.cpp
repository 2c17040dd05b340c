// NVIDIA's cuBLASLt without a card: the functions of libcublasLt.so.13 that this program calls, for the emulated driver beside it.
// Matrices lie column by column, as that library has them, and each value is one sum in f32. What the library would refuse, or
// compute wrongly, is refused here: attributes of another size, sizes that do not fit, addresses that are not multiples of what
// the choice of the algorithm was told. EMULATED_LIBRARY=none is a machine without it.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "emulator.h"

extern "C" int cuLaunchHostFunc(void* stream, void (*work)(void*), void* data);

namespace {

// Of the real library's numbers, those that are told here.
constexpr int SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15;
constexpr int IN_F32 = 68, F32 = 0, BF16 = 14;
constexpr int FIRST_TRANSPOSED = 3, SECOND_TRANSPOSED = 4, MOST_WORKSPACE = 1, REDUCTION_SCHEMES = 3;
constexpr int ALIGNED_A = 5, ALIGNED_D = 8;

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Product {
    bool transposed[2] = {false, false};
};
struct Preference {
    uint64_t workspace = 0;
    // Of A, B, C and D.
    uint32_t aligned[4] = {256, 256, 256, 256};
};
// What was chosen, in the library's 64 bytes for it.
struct Choice {
    uint64_t workspace;
    uint32_t aligned[4];
};
struct Chosen {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

bool fits(const Product& product, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    bool all = a.type == BF16 && b.type == BF16 && (d.type == BF16 || d.type == F32) && c.type == d.type;
    for (auto layout : {a, b, c, d}) all &= layout.rows > 0 && layout.columns > 0 && layout.stride >= int64_t(layout.rows);
    uint64_t rows = product.transposed[0] ? a.columns : a.rows, inner = product.transposed[0] ? a.rows : a.columns;
    uint64_t columns = product.transposed[1] ? b.rows : b.columns, other = product.transposed[1] ? b.columns : b.rows;
    return all && inner == other && d.rows == rows && d.columns == columns && c.rows == rows && c.columns == columns;
}

float read(const void* at, int type, uint64_t place) {
    return type == F32 ? static_cast<const float*>(at)[place] : to_float(static_cast<const bf16*>(at)[place]);
}
void write(void* at, int type, uint64_t place, float value) {
    if (type == F32) static_cast<float*>(at)[place] = value;
    else static_cast<bf16*>(at)[place] = to_bf16(value);
}

// All that was asked, for when its turn comes.
struct Work {
    Product product;
    float alpha, beta;
    const void *a, *b, *c;
    void* d;
    Layout of_a, of_b, of_c, of_d;
};

void compute(void* data) {
    auto work = static_cast<Work*>(data);
    auto [product, alpha, beta, a, b, c, d, of_a, of_b, of_c, of_d] = *work;
    delete work;
    uint64_t inner = product.transposed[0] ? of_a.rows : of_a.columns;
    for (uint64_t column = 0; column < of_d.columns; column++) {
        for (uint64_t row = 0; row < of_d.rows; row++) {
            float sum = 0;
            for (uint64_t k = 0; k < inner; k++) {
                uint64_t at_a = product.transposed[0] ? row * of_a.stride + k : k * of_a.stride + row;
                uint64_t at_b = product.transposed[1] ? k * of_b.stride + column : column * of_b.stride + k;
                sum += read(a, BF16, at_a) * read(b, BF16, at_b);
            }
            float before = beta == 0 ? 0 : beta * read(c, of_c.type, column * of_c.stride + row);
            write(d, of_d.type, column * of_d.stride + row, alpha * sum + before);
        }
    }
}

template <class T> int make(void** at, T value) { return *at = new T(value), SUCCESS; }
template <class T> int destroy(void* at) { return delete static_cast<T*>(at), SUCCESS; }

}  // namespace

extern "C" {

int cublasLtCreate(void** handle) {
    const char* told = std::getenv("EMULATED_LIBRARY");
    return told && std::strcmp(told, "none") == 0 ? NOT_INITIALIZED : make(handle, 0);
}
int cublasLtDestroy(void* handle) { return destroy<int>(handle); }

int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return make(layout, Layout{type, rows, columns, stride});
}
int cublasLtMatrixLayoutDestroy(void* layout) { return destroy<Layout>(layout); }

int cublasLtMatmulDescCreate(void** product, int compute_type, int scale_type) {
    return compute_type == IN_F32 && scale_type == F32 ? make(product, Product()) : NOT_SUPPORTED;
}
int cublasLtMatmulDescSetAttribute(void* product, int attribute, const void* value, size_t bytes) {
    int32_t told;
    if (bytes != sizeof told || (attribute != FIRST_TRANSPOSED && attribute != SECOND_TRANSPOSED)) return INVALID_VALUE;
    std::memcpy(&told, value, bytes);
    if (told != 0 && told != 1) return INVALID_VALUE;
    return static_cast<Product*>(product)->transposed[attribute - FIRST_TRANSPOSED] = told == 1, SUCCESS;
}
int cublasLtMatmulDescDestroy(void* product) { return destroy<Product>(product); }

int cublasLtMatmulPreferenceCreate(void** preference) { return make(preference, Preference()); }
int cublasLtMatmulPreferenceSetAttribute(void* at, int attribute, const void* value, size_t bytes) {
    auto preference = static_cast<Preference*>(at);
    if (attribute == MOST_WORKSPACE && bytes == 8) return std::memcpy(&preference->workspace, value, 8), SUCCESS;
    if (bytes != 4) return INVALID_VALUE;
    if (attribute == REDUCTION_SCHEMES) return SUCCESS;
    if (attribute < ALIGNED_A || attribute > ALIGNED_D) return INVALID_VALUE;
    return std::memcpy(&preference->aligned[attribute - ALIGNED_A], value, 4), SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(void* preference) { return destroy<Preference>(preference); }

int cublasLtMatmulAlgoGetHeuristic(void*, void* product, void* a, void* b, void* c, void* d, void* preference, int, Chosen* chosen,
                                   int* count) {
    auto told = static_cast<Preference*>(preference);
    *count = 0;
    bool all = fits(*static_cast<Product*>(product), *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(c),
                    *static_cast<Layout*>(d));
    if (!all) return INVALID_VALUE;
    Choice choice{told->workspace, {}};
    std::copy(told->aligned, told->aligned + 4, choice.aligned);
    *chosen = Chosen{{}, told->workspace, SUCCESS, 1, {}};
    static_assert(sizeof choice <= sizeof chosen->algorithm, "");
    std::memcpy(chosen->algorithm, &choice, sizeof choice);
    return *count = 1, SUCCESS;
}

int cublasLtMatmul(void*, void* product, const float* alpha, const void* a, void* of_a, const void* b, void* of_b,
                   const float* beta, const void* c, void* of_c, void* d, void* of_d, const void* algorithm, void* workspace,
                   size_t bytes, void* stream) {
    Choice choice;
    std::memcpy(&choice, algorithm, sizeof choice);
    auto work = new Work{*static_cast<Product*>(product), *alpha, *beta, a, b, c, d, *static_cast<Layout*>(of_a),
                         *static_cast<Layout*>(of_b), *static_cast<Layout*>(of_c), *static_cast<Layout*>(of_d)};
    bool all = fits(work->product, work->of_a, work->of_b, work->of_c, work->of_d) && bytes >= choice.workspace && workspace;
    const void* places[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) all &= reinterpret_cast<uintptr_t>(places[i]) % std::max(choice.aligned[i], 1u) == 0;
    if (!all) return delete work, INVALID_VALUE;
    return cuLaunchHostFunc(stream, compute, work) == 0 ? SUCCESS : INVALID_VALUE;
}

}  // extern "C"

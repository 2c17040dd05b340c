// NF4 in registers: 4 bits to bf16, and an operand of gemm.h that is decoded on its way into shared memory.
//
// A thread decodes 32 or 64 values of one block. Their 16 possible values, x' = code * absmax rounded once, are computed first
// and kept as bytes in 8 registers; a value is looked up by permuting bytes, 8 in 21 instructions, one of them a product. That is exact, needs no
// shared memory (which mma waits for already) and takes about 3.3 instructions a value.
#pragma once

#include "gemm.h"

namespace nf4 {

constexpr int BLOCK = 64;
constexpr int NESTED_BLOCK = 256;

CONSTANT float CODE[16] = {-1.0f,
                           -0.6961928009986877f,
                           -0.5250730514526367f,
                           -0.39491748809814453f,
                           -0.28444138169288635f,
                           -0.18477343022823334f,
                           -0.09105003625154495f,
                           0.0f,
                           0.07958029955625534f,
                           0.16093020141124725f,
                           0.24611230194568634f,
                           0.33791524171829224f,
                           0.44070982933044434f,
                           0.5626170039176941f,
                           0.7229568362236023f,
                           1.0f};

// A matrix in NF4, rows of a multiple of 64 values, or several one behind the other. Scales are `absmax` or, where there are
// `codes`, map[code] * nested + offset.
struct Stored {
    global<const uint8_t> packed;
    global<const float> absmax;
    global<const uint8_t> codes;
    global<const float> nested;
    global<const float> map;
    float offset;
};

// A scale as it comes from memory. What it stands for is looked up only once it is needed.
struct Scale {
    float value;
    uint32_t code;

    DEVICE static Scale of(const Stored& from, uint32_t block) {
        if (from.codes) return {from.nested[block / NESTED_BLOCK], from.codes[block]};
        return {from.absmax[block], 0};
    }

    DEVICE float decoded(const Stored& from) const {
        return from.codes ? add(multiply(from.map[code], value), from.offset) : value;
    }
};

// The 16 values of a block: bytes 4 i .. 4 i + 3 of the low halves and of the high halves.
struct Table {
    uint32_t lows[4], highs[4];

    DEVICE explicit Table(float absmax) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t first = pack(multiply(CODE[4 * i], absmax), multiply(CODE[4 * i + 1], absmax));
            uint32_t second = pack(multiply(CODE[4 * i + 2], absmax), multiply(CODE[4 * i + 3], absmax));
            lows[i] = permute_bytes(first, second, 0x6420);
            highs[i] = permute_bytes(first, second, 0x7531);
        }
    }

    // 8 values, the first of a byte in its high half. `places` are the lower three bits of the codes; the fourth, the sign of a
    // byte, chooses between what is found among the first 8 values and among the last.
    DEVICE uint4 eight(uint32_t codes) const {
        uint32_t places = codes & 0x77777777u, seconds = codes << 4;
        uint32_t pairs[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t last = permute_bytes(codes, seconds, half == 0 ? 0x9d8c : 0xbfae);
            auto among = [&](const uint32_t(&bytes)[4]) {
                return (permute_bytes(bytes[0], bytes[1], places) & ~last) | (permute_bytes(bytes[2], bytes[3], places) & last);
            };
            uint32_t low = among(lows), high = among(highs);
            pairs[2 * half] = permute_bytes(low, high, 0x4051);
            pairs[2 * half + 1] = permute_bytes(low, high, 0x6273);
            places >>= 16;
        }
        return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
};

// The operand [outer, k] (ALONG) or [k, outer]. A tile is read from memory while the one before is computed, and decoded into
// shared memory one turn later. Threads that store at the same time have neighbouring rows, and so different banks.
template <class T, int OUTER, bool ALONG> struct Operand {
    static constexpr bool ALONG_K = ALONG, CHANGES = false;
    static constexpr int ROWS = ALONG ? OUTER : T::K, COLUMNS = ALONG ? T::K : OUTER;
    static constexpr int VALUES = ROWS * COLUMNS / T::THREADS;
    static_assert(COLUMNS % BLOCK == 0 && T::THREADS % ROWS == 0, "whole blocks, and a row for each thread");
    static_assert(VALUES == 32 || VALUES == 64, "a block or half of one for each thread");
    Stored stored;
    int limit;
    // Blocks of a row, and the thread's first one; from tile to tile comes one block or K rows of them.
    uint32_t width, block;
    int at;
    uint4 fetched[VALUES / 32];
    Scale scale;

    // `before`: blocks before the matrix, which has so many rows and columns; `first` of them (columns where k are the rows)
    // are before those of the thread's block.
    DEVICE Operand(const Stored& stored, uint32_t before, int rows, int columns, int first) : stored(stored) {
        width = uint32_t(columns) / BLOCK;
        int row = ALONG ? first + own_row() : own_row(), column = ALONG ? own_column() : first + own_column();
        block = before + uint32_t(row) * width + uint32_t(column) / BLOCK;
        // What `at` must stay below; nothing of a thread that has no place in the other direction.
        at = ALONG ? own_column() : own_row();
        limit = (ALONG ? row < rows : column < columns) ? (ALONG ? columns : rows) : 0;
        fetch();
    }

    DEVICE static int own_row() { return int(threadIdx.x) % ROWS; }
    DEVICE static int own_column() { return int(threadIdx.x) / ROWS * VALUES; }

    DEVICE void fetch() {
        scale = {0.0f, 0};
#pragma unroll
        for (int i = 0; i < VALUES / 32; i++) fetched[i] = make_uint4(0, 0, 0, 0);
        if (at >= limit) return;
        global<const uint8_t> from = stored.packed + int64_t(block) * (BLOCK / 2) + own_column() % BLOCK / 2;
#pragma unroll
        for (int i = 0; i < VALUES / 32; i++) fetched[i] = ::load<uint4>(from + 16 * i);
        scale = Scale::of(stored, block);
    }

    DEVICE void load(shared<bf16> to, int) {
        const Table table(at < limit ? scale.decoded(stored) : 0.0f);
#pragma unroll
        for (int i = 0; i < VALUES / 32; i++) {
            uint32_t words[4] = {fetched[i].x, fetched[i].y, fetched[i].z, fetched[i].w};
#pragma unroll
            for (int word = 0; word < 4; word++) {
                int chunk = own_column() / gemm::CHUNK + 4 * i + word;
                store(to + T::template place<ROWS, COLUMNS>(own_row(), chunk), table.eight(words[word]));
            }
        }
        block += ALONG ? T::K / BLOCK : T::K * width;
        at += T::K;
        fetch();
    }
};

}  // namespace nf4

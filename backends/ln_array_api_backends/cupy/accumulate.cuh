// The beginning of all sources: index and accumulation types, limits, compensated sums.

using Index = long long;

// The dtype that values of a dtype are computed in.
template <class T>
struct Accumulation {
    using type = float;
};
template <>
struct Accumulation<double> {
    using type = double;
};
template <class T>
using Accumulator = typename Accumulation<T>::type;

// Of an accumulation dtype, float or double.
template <class A>
struct Limits {
    static constexpr bool IS_DOUBLE = sizeof(A) == sizeof(double);
    static constexpr A max_finite = IS_DOUBLE ? 0x1.fffffffffffffp1023 : 0x1.fffffep127;
    static constexpr A min_normal = IS_DOUBLE ? 0x1p-1022 : 0x1p-126;
    // Below it, a mean of squares may have lost digits by underflow of its larger terms.
    static constexpr A min_mean_square = IS_DOUBLE ? 0x1p-900 : 0x1p-100;
    // Below it, sums of deviations may overflow.
    static constexpr A min_rstd = IS_DOUBLE ? 0x1p-512 : 0x1p-64;
    // Above it, a sum of a few values may overflow.
    static constexpr A max_summand = IS_DOUBLE ? 0x1p1015 : 0x1p119;
    // Rows are scaled by powers of two up to this exponent, positive or negative.
    static constexpr int max_exponent = IS_DOUBLE ? 999 : 103;
    // Below it, 2 to the power of minus the exponent is out of the dtype's range.
    static constexpr int min_exponent = IS_DOUBLE ? -1000 : -120;
};

// The power of two by which deviations from a mean are multiplied before they are summed: it rounds
// nothing, and neither they nor their sums overflow.
template <class A>
__device__ A range_scale(A rstd) {
    return rstd < Limits<A>::min_rstd ? Limits<A>::min_rstd : A(1);
}

// A sum and the rounding errors of its additions: Knuth, The Art of Computer Programming 2, 4.2.2,
// theorem B.
template <class A>
struct CompensatedSum {
    A sum = 0, compensation = 0;

    __device__ void add(A value) {
        const A new_sum = sum + value;
        const A added = new_sum - sum;
        compensation += (sum - (new_sum - added)) + (value - added);
        sum = new_sum;
    }
    // Where the sum is infinite, its compensation is NaN.
    __device__ A total() const { return compensation == compensation ? sum + compensation : sum; }
};

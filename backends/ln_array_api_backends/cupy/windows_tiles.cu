// Local contrast norm in one launch: a block has a tile of a plane, with all its windows, in shared
// memory.
//
// Along rows, neighbouring threads have different rows, which are an odd number of elements apart,
// so that they use different banks.

// Most threads of a block.
constexpr int TILE_THREADS = 256;
// Elements that a thread loads before it uses any.
constexpr int LOADED_TOGETHER = 4;

// The rows and columns of a range that a thread has. Neighbouring threads have neighbouring
// columns.
struct CellIterator {
    int row, column, columns, row_step, column_step;

    __device__ explicit CellIterator(int columns)
        : row(int(threadIdx.x) / columns),
          column(int(threadIdx.x) % columns),
          columns(columns),
          row_step(int(blockDim.x) / columns),
          column_step(int(blockDim.x) % columns) {}
    __device__ void next() {
        row += row_step;
        column += column_step;
        if (column >= columns) {
            column -= columns;
            ++row;
        }
    }
};

// Call a function for each row and column of a range.
template <class Body>
__device__ void for_cells(int rows, int columns, Body body) {
    for (CellIterator at(columns); at.row < rows; at.next()) body(at.row, at.column);
}

// A part of a plane, with `rows` rows and `columns` columns from (top, left) on, which may be
// outside of the plane. `origin` is its first element, counted from the beginning of x.
struct Tile {
    Index origin, height, width, top, left;
    int rows, columns;

    __device__ Extent<int> down(int radius) const { return extent(top, height, rows, radius); }
    __device__ Extent<int> across(int radius) const { return extent(left, width, columns, radius); }
    __device__ Index element(int i, int j) const { return origin + i * width + j; }
    // The tile with more rows and columns around it.
    __device__ Tile around(int more_rows, int more_columns) const {
        return {origin - more_rows * width - more_columns,
                height,
                width,
                top - more_rows,
                left - more_columns,
                rows + 2 * more_rows,
                columns + 2 * more_columns};
    }

  private:
    __device__ static Extent<int> extent(Index start, Index length, int count, int radius) {
        return {int(max(-start, Index(0))), int(min(length - start, Index(count))), radius};
    }
};

// The tile of a block.
__device__ inline Tile tile_of_block(Index height, Index width, int rows, int columns) {
    const Index bands = (height + rows - 1) / rows, strips = (width + columns - 1) / columns;
    const Index plane = blockIdx.x / (bands * strips), tile = blockIdx.x % (bands * strips);
    const Index top = tile / strips * rows, left = tile % strips * columns;
    const Index origin = (plane * height + top) * width + left;
    return {origin, height, width, top, left, rows, columns};
}

__device__ inline int odd(int n) { return n | 1; }

// Load a tile, and multiply it by the factor that is returned.
template <class T, class A>
__device__ A load_tile(const T* x, const Tile& tile, A* field, double root_of_epsilon) {
    __shared__ A warp_maxima[TILE_THREADS / WARP];
    const Extent<int> down = tile.down(0), across = tile.across(0);
    const int rows = down.end - down.begin, columns = across.end - across.begin;
    const int pitch = odd(tile.columns);
    x += tile.element(down.begin, across.begin);
    field += down.begin * pitch + across.begin;
    A max_abs = 0;
    for (CellIterator at(columns); at.row < rows;) {
        T values[LOADED_TOGETHER];
        CellIterator loaded = at;
#pragma unroll
        for (int k = 0; k < LOADED_TOGETHER; ++k, loaded.next())
            if (loaded.row < rows) values[k] = x[loaded.row * tile.width + loaded.column];
#pragma unroll
        for (int k = 0; k < LOADED_TOGETHER; ++k, at.next()) {
            if (at.row >= rows) break;
            const A value = static_cast<A>(values[k]);
            max_abs = max(max_abs, finite_magnitude(value));
            field[at.row * pitch + at.column] = value;
        }
    }
    max_abs = warp_reduce_max(max_abs);
    if (threadIdx.x % WARP == 0) warp_maxima[threadIdx.x / WARP] = max_abs;
    __syncthreads();
    for (int warp = 0; warp < int(blockDim.x) / WARP; ++warp)
        max_abs = max(max_abs, warp_maxima[warp]);
    const A factor = scale_factor(max_abs, root_of_epsilon);
    if (factor != 1) {
        for_cells(rows, columns, [&](int i, int j) { field[i * pitch + j] *= factor; });
        __syncthreads();
    }
    return factor;
}

// The elements of an axis of a tile that are in the plane, and at least the radius from its ends.
__device__ inline Extent<int> centers(const Extent<int>& axis, int count) {
    return {max(axis.radius, axis.begin), min(count - axis.radius, axis.end), axis.radius};
}

// Compute the moments of runs along the rows of a tile. Columns are counted from the radius on.
template <bool NEED_VARIANCE, class A>
__device__ void moments_across(const A* x, const Tile& tile, int radius, A* deviations,
                               A* variances) {
    const Extent<int> down = tile.down(0), across = tile.across(radius);
    const Extent<int> inner = centers(across, tile.columns);
    const int pitch = odd(tile.columns), run_pitch = odd(tile.columns - 2 * radius);
    by_neighbours(radius, [&](auto count) {
        constexpr int COUNT = decltype(count)::value;
        const int groups = (inner.end - inner.begin + COUNT - 1) / COUNT;
        for_cells(groups, down.end - down.begin, [&](int group, int row) {
            const int i = down.begin + row, first = inner.begin + group * COUNT;
            A deviation[COUNT], variance[COUNT];
            window_moments<COUNT, NEED_VARIANCE>(Line<A, int>{x + i * pitch, 1}, SingleElements(),
                                                 first, across, deviation, variance);
            const int at = i * run_pitch + first - radius;
#pragma unroll
            for (int v = 0; v < COUNT; ++v) {
                if (first + v >= inner.end) break;
                deviations[at + v] = deviation[v];
                if constexpr (NEED_VARIANCE) variances[at + v] = variance[v];
            }
        });
    });
}

// Compute the moments of the windows of a tile from those of runs along its rows, and pass those of
// each window to a function, with the place of its element in the tile.
template <bool NEED_VARIANCE, class A, class Output>
__device__ void moments_down(const A* x, const Tile& tile, int radius_down, int radius_across,
                             const A* deviations, const A* variances, Output output) {
    const Extent<int> down = tile.down(radius_down), across = tile.across(radius_across);
    const Extent<int> inner = centers(down, tile.rows), columns = centers(across, tile.columns);
    const int pitch = odd(tile.columns), run_pitch = odd(tile.columns - 2 * radius_across);
    by_neighbours(radius_down, [&](auto count) {
        constexpr int COUNT = decltype(count)::value;
        const int groups = (inner.end - inner.begin + COUNT - 1) / COUNT;
        for_cells(groups, columns.end - columns.begin, [&](int group, int column) {
            const int first = inner.begin + group * COUNT, j = columns.begin + column;
            const int run = j - radius_across;
            const Line<A, int> line{x + j, pitch};
            A deviation[COUNT], variance[COUNT];
            window_moments<COUNT, NEED_VARIANCE>(
                line, RunMoments<A, int>{deviations + run, variances + run, run_pitch}, first, down,
                deviation, variance);
#pragma unroll
            for (int v = 0; v < COUNT; ++v) {
                if (first + v >= inner.end) break;
                output(first + v, j, line[first + v], deviation[v], variance[v]);
            }
        });
    });
}

// Write y, and mean and rstd unless these are null.
template <class T>
__global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS_PER_SM<T>)
    tiles_forward(const T* __restrict__ x, T* __restrict__ y, Accumulator<T>* __restrict__ mean,
                  Accumulator<T>* __restrict__ rstd, Index height, Index width, int rows,
                  int columns, int radius_down, int radius_across, double epsilon,
                  double root_of_epsilon, double constant_rstd) {
    using A = Accumulator<T>;
    extern __shared__ double fields[];
    const Tile tile =
        tile_of_block(height, width, rows, columns).around(radius_down, radius_across);
    A* const field = reinterpret_cast<A*>(fields);
    A* const deviations = field + tile.rows * odd(tile.columns);
    A* const variances = deviations + tile.rows * odd(columns);
    const A factor = load_tile(x, tile, field, root_of_epsilon);
    moments_across<true>(field, tile, radius_across, deviations, variances);
    __syncthreads();
    const ForwardOutput<T, A> results(y, mean, rstd, factor, epsilon, constant_rstd);
    moments_down<true>(field, tile, radius_down, radius_across, deviations, variances,
                       [&](int i, int j, A value, A deviation, A variance) {
                           results.write(tile.element(i, j), value, deviation, variance);
                       });
}

// Write dx. Elements are in windows that reach as far as the radius around the tile, so that x is
// needed twice as far.
template <class T, class Dy>
__global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS_PER_SM<T>)
    tiles_backward(const Dy* __restrict__ dy, const T* __restrict__ x,
                   const Accumulator<T>* __restrict__ rstd, T* __restrict__ dx, Index height,
                   Index width, int rows, int columns, int radius_down, int radius_across) {
    using A = Accumulator<T>;
    extern __shared__ double fields[];
    const Tile tile = tile_of_block(height, width, rows, columns);
    const Tile windows = tile.around(radius_down, radius_across);
    const Tile source = windows.around(radius_down, radius_across);
    const int pitch = odd(source.columns), term_pitch = odd(windows.columns);
    const int sum_pitch = odd(columns);
    A* const field = reinterpret_cast<A*>(fields);
    A* const totals = field + source.rows * pitch;
    A* const moments = totals + windows.rows * term_pitch;
    // The sums of runs take the place of the deviations of runs.
    A* const deviations = moments + windows.rows * term_pitch;
    const int sum_stride = windows.rows * sum_pitch;

    const GradientScale<A> scale(load_tile(x, source, field, 0.0));
    moments_across<false>(field, source, radius_across, deviations, deviations);
    __syncthreads();
    const Extent<int> all_down = source.down(radius_down);
    const Extent<int> all_across = source.across(radius_across);
    moments_down<false>(
        field, source, radius_down, radius_across, deviations, deviations,
        [&](int i, int j, A, A deviation, A) {
            const Index at = source.element(i, j);
            const int term = (i - radius_down) * term_pitch + j - radius_across;
            const A count =
                A(elements_in_window(i, all_down)) * A(elements_in_window(j, all_across));
            scale.terms(static_cast<A>(dy[at]), rstd[at], deviation, count, totals[term],
                        moments[term]);
        });
    __syncthreads();

    const Extent<int> down = windows.down(radius_down), across = windows.across(radius_across);
    A* const sums = deviations;
    by_neighbours(radius_across, [&](auto count) {
        constexpr int COUNT = decltype(count)::value;
        const Extent<int> inner = centers(across, windows.columns);
        const int groups = (inner.end - inner.begin + COUNT - 1) / COUNT;
        for_cells(groups, down.end - down.begin, [&](int group, int row) {
            const int i = down.begin + row, first = inner.begin + group * COUNT;
            const A* const x_row = field + (i + radius_down) * pitch + radius_across;
            Sums<A> run[COUNT];
            window_sums<COUNT>(
                [&](int k) {
                    const A total = totals[i * term_pitch + k];
                    return Sums<A>{x_row[k], abs(total), total, moments[i * term_pitch + k]};
                },
                first, across, run);
            const int at = i * sum_pitch + first - radius_across;
#pragma unroll
            for (int v = 0; v < COUNT; ++v) {
                if (first + v >= inner.end) break;
                run[v].store(sums + at + v, sum_stride);
            }
        });
    });
    __syncthreads();
    by_neighbours(radius_down, [&](auto count) {
        constexpr int COUNT = decltype(count)::value;
        const Extent<int> inner = centers(down, windows.rows);
        const Extent<int> inner_columns = centers(across, windows.columns);
        const int groups = (inner.end - inner.begin + COUNT - 1) / COUNT;
        for_cells(groups, inner_columns.end - inner_columns.begin, [&](int group, int column) {
            const int first = inner.begin + group * COUNT;
            Sums<A> all[COUNT];
            window_sums<COUNT>(
                [&](int k) { return Sums<A>::load(sums + k * sum_pitch + column, sum_stride); },
                first, down, all);
#pragma unroll
            for (int v = 0; v < COUNT; ++v) {
                if (first + v >= inner.end) break;
                const int i = first + v, j = inner_columns.begin + column;
                const Index at = windows.element(i, j);
                const A value = field[(i + radius_down) * pitch + j + radius_across];
                dx[at] = static_cast<T>(scale.dx(static_cast<A>(dy[at]), rstd[at], all[v], value));
            }
        });
    });
}

// The fibers of one block, their barriers, and the order in which they run.
#include "simulator.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

// Defined with AddressSanitizer, to which every change of stack must be reported.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void simulator_switch(void** save, void* load);
}

// Defined with ThreadSanitizer. Each fiber is a thread to it, and the simulator's switches order
// nothing: only what CUDA orders is ordered, by a release before it and an acquire after.
extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_switch_to_fiber(void*, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void*);
__attribute__((weak)) void __tsan_release(void*);
}

// Save the registers that the x86-64 ABI requires a callee to keep, and continue at `load`.
__asm__(R"(
    .text
    .type simulator_switch, @function
    .globl simulator_switch
simulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

namespace simulator {

Machine machine;

namespace {

constexpr size_t STACK = 256 << 10;
// Distance between stacks: a power of two would map them to the same cache lines.
constexpr size_t STRIDE = STACK + 9 * 64;
constexpr size_t STACKS_AT_ONCE = 64;
constexpr unsigned SAVED_REGISTERS = 6;
constexpr int LAUNCH_FAILED = 719;
constexpr int POISON = 0xff;  // a NaN in every dtype
constexpr unsigned WITHOUT_ORDER = 1;
const bool SANITIZED = __sanitizer_start_switch_fiber || __tsan_switch_to_fiber;

// A thread may arrive at the next barrier before others have left this one, and these must not be
// ordered after it. So barriers use two addresses in turn for release and acquire.
struct Meeting {
    unsigned count;
    char places[2];
};

struct Warp {
    unsigned arrived, mask;
    Meeting meeting;
    int line;
    Slot slots[2][32];
};

enum Order { FORWARD, REVERSE, GREEDY, GREEDY_REVERSE };

Order order = FORWARD;
uint64_t last_blocks = 0;  // of a grid, that are run alone; 0 for all
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<char*> stacks;
void* scheduler_stack_pointer;
const void* scheduler_stack;
size_t scheduler_stack_size;
size_t alive, arrived;
size_t round_place, round_end;
int barrier_line;
char failure[256];
void (*thread_function)(void*);
void* thread_argument;
void* scheduler_fiber;
std::vector<void*> sanitizer_fibers;  // to ThreadSanitizer, one for each thread of the largest block
char block_begins, block_ends;
Meeting meeting;

void release(void* place) {
    if (__tsan_release) __tsan_release(place);
}

void acquire(void* place) {
    if (__tsan_acquire) __tsan_acquire(place);
}

void go_to_scheduler(bool for_good) {
    Fiber* self = machine.current;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(for_good ? nullptr : &self->fake_stack, scheduler_stack,
                                       scheduler_stack_size);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_fiber, WITHOUT_ORDER);
    simulator_switch(&self->stack_pointer, scheduler_stack_pointer);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_stack, &scheduler_stack_size);
}

void begin() {
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
    acquire(&block_begins);
    thread_function(thread_argument);
    release(&block_ends);
    machine.current->state = State::done;
    --alive;
    go_to_scheduler(true);
    abort();
}

void start(Fiber& fiber) {
    fiber.started = true;
    if (stacks.empty()) {
        void* const some = mmap(nullptr, STRIDE * STACKS_AT_ONCE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (size_t each = STACKS_AT_ONCE; each-- > 0;)
            stacks.push_back(static_cast<char*>(some) + each * STRIDE);
    }
    fiber.stack = stacks.back();
    stacks.pop_back();
    void** top = reinterpret_cast<void**>(fiber.stack + STACK - 64);
    *--top = nullptr;  // a return address, which keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(begin);
    for (unsigned each = 0; each < SAVED_REGISTERS; ++each) *--top = nullptr;
    fiber.stack_pointer = top;
}

void give_back(Fiber& fiber) {
    stacks.push_back(fiber.stack);
    fiber.stack = nullptr;
}

void resume(Fiber& fiber) {
    machine.current = &fiber;
    if (!fiber.started) start(fiber);
    void* fake_stack = nullptr;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&fake_stack, fiber.stack, STACK);
    if (__tsan_switch_to_fiber)
        __tsan_switch_to_fiber(sanitizer_fibers[fiber.index], WITHOUT_ORDER);
    simulator_switch(&scheduler_stack_pointer, fiber.stack_pointer);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
    // ThreadSanitizer would report another thread of the block on this stack as a race.
    Fiber& last = *machine.current;
    if (last.state == State::done && !__tsan_create_fiber) give_back(last);
}

// Return the next thread that can run in this round.
Fiber* next_ready() {
    while (round_place < round_end && !*failure) {
        const size_t each = round_place++;
        Fiber& fiber = fibers[order == REVERSE ? fibers.size() - 1 - each : each];
        if (fiber.state == State::ready) return &fiber;
    }
    return nullptr;
}

// Wait for the next turn. Usually another thread runs next; with a sanitizer, the scheduler does.
void suspend() {
    Fiber* const self = machine.current;
    Fiber* const next = SANITIZED ? nullptr : next_ready();
    if (!next) return go_to_scheduler(false);
    machine.current = next;
    if (!next->started) start(*next);
    simulator_switch(&self->stack_pointer, next->stack_pointer);
}

// Run some threads, each until it waits; return whether any could run.
bool run_round(size_t first, size_t end) {
    round_place = first;
    round_end = end;
    bool progress = false;
    while (Fiber* const next = next_ready()) {
        progress = true;
        resume(*next);
    }
    return progress;
}

// One round: run every thread that can run, or in a greedy order one warp, as far as possible.
bool advance() {
    if (order != GREEDY && order != GREEDY_REVERSE) return run_round(0, fibers.size());
    bool progress = false;
    for (size_t each = 0; each < warps.size() && !progress; ++each) {
        const size_t first = 32 * (order == GREEDY ? each : warps.size() - 1 - each);
        progress = run_round(first, std::min(first + 32, fibers.size()));
    }
    return progress;
}

void report_deadlock() {
    int at_block = 0, at_warp = 0, line = 0;
    for (const Fiber& fiber : fibers) {
        at_block += fiber.state == State::at_block_barrier;
        at_warp += fiber.state == State::at_warp_barrier;
        if (fiber.state != State::done) line = fiber.line;
    }
    fail("deadlock: %d threads at __syncthreads, %d at a warp's barrier, %d gone; line %d", at_block,
         at_warp, int(fibers.size() - alive), line);
}

void run_block(const unsigned* dimensions) {
    const size_t count = fibers.size();
    uint3 thread{};
    for (size_t each = 0; each < count; ++each) {
        const unsigned index = unsigned(each);
        fibers[each] = Fiber{};
        fibers[each].index = index;
        fibers[each].thread = thread;
        if (++thread.x < dimensions[3]) continue;
        thread.x = 0;
        if (++thread.y < dimensions[4]) continue;
        thread.y = 0;
        ++thread.z;
    }
    alive = count;
    arrived = 0;
    for (Warp& warp : warps) warp.arrived = 0;
    release(&block_begins);
    while (alive && !*failure)
        if (!advance() && !*failure) report_deadlock();
    for (Fiber& fiber : fibers)
        if (fiber.stack) give_back(fiber);
}

}  // namespace

void fail(const char* format, int a, int b, int c, int d) {
    if (!*failure) snprintf(failure, sizeof failure, format, a, b, c, d);
}

void block_barrier(int line) {
    if (arrived == 0)
        barrier_line = line;
    else if (barrier_line != line)
        fail("block %d: __syncthreads of lines %d and %d met", int(machine.block_index.x),
             barrier_line, line);
    machine.current->state = State::at_block_barrier;
    machine.current->line = line;
    char* const place = &meeting.places[meeting.count & 1];
    release(place);
    // A thread that has returned never arrives, so a barrier after this is a deadlock.
    if (++arrived == fibers.size()) {
        arrived = 0;
        ++meeting.count;
        for (Fiber& fiber : fibers) fiber.state = State::ready;
    }
    suspend();
    acquire(place);
}

void warp_barrier(unsigned mask, int line, bool orders_memory) {
    Fiber& self = *machine.current;
    Warp& warp = warps[self.index / 32];
    const unsigned lane = self.index % 32;
    if (!(mask >> lane & 1)) fail("line %d: lane %d is not in its own mask", line, int(lane));
    if (warp.arrived == 0) {
        warp.line = line;
        warp.mask = mask;
    } else if (warp.line != line || warp.mask != mask) {
        fail("warp barriers of lines %d and %d met, with masks %08x and %08x", warp.line, line,
             int(warp.mask), int(mask));
    }
    char* const place = &warp.meeting.places[warp.meeting.count & 1];
    if (orders_memory) release(place);
    warp.arrived |= 1u << lane;
    self.state = State::at_warp_barrier;
    self.line = line;
    if (warp.arrived == mask) {
        warp.arrived = 0;
        ++warp.meeting.count;
        const size_t first = self.index / 32 * 32, end = std::min(first + 32, fibers.size());
        for (size_t each = first; each < end; ++each)
            if (mask >> (each - first) & 1) fibers[each].state = State::ready;
    }
    suspend();
    if (orders_memory) acquire(place);
}

const Slot* exchange(unsigned mask, Slot value, int line) {
    Fiber& self = *machine.current;
    Slot* slots = warps[self.index / 32].slots[self.exchanges++ & 1];
    slots[self.index % 32] = value;
    warp_barrier(mask, line, false);
    return slots;
}

int run(void (*thread)(void*), void* argument, const unsigned* dimensions, size_t dynamic_shared,
        char* static_shared, size_t static_shared_size) {
    thread_function = thread;
    thread_argument = argument;
    machine.grid = dim3(dimensions[0], dimensions[1], dimensions[2]);
    machine.block = dim3(dimensions[3], dimensions[4], dimensions[5]);
    *failure = 0;
    fibers.resize(size_t(dimensions[3]) * dimensions[4] * dimensions[5]);
    if (__tsan_create_fiber) {
        scheduler_fiber = __tsan_get_current_fiber();
        while (sanitizer_fibers.size() < fibers.size())
            sanitizer_fibers.push_back(__tsan_create_fiber(0));
    }
    warps.resize((fibers.size() + 31) / 32);
    machine.dynamic_shared = malloc(dynamic_shared ? dynamic_shared : 1);
    const uint64_t blocks = uint64_t(dimensions[0]) * dimensions[1] * dimensions[2];
    const bool backwards = order == REVERSE || order == GREEDY_REVERSE;
    const uint64_t first = last_blocks && last_blocks < blocks ? blocks - last_blocks : 0;
    for (uint64_t each = first; each < blocks && !*failure; ++each) {
        const uint64_t block = backwards ? blocks - 1 - (each - first) : each;
        machine.block_index.x = unsigned(block % dimensions[0]);
        machine.block_index.y = unsigned(block / dimensions[0] % dimensions[1]);
        machine.block_index.z = unsigned(block / dimensions[0] / dimensions[1]);
        memset(machine.dynamic_shared, POISON, dynamic_shared);
        if (static_shared_size) memset(static_shared, POISON, static_shared_size);
        run_block(dimensions);
        acquire(&block_ends);
    }
    free(machine.dynamic_shared);
    return *failure ? LAUNCH_FAILED : 0;
}

}  // namespace simulator

extern "C" void simulator_set_order(int order) { simulator::order = simulator::Order(order); }
extern "C" void simulator_set_last_blocks(long count) { simulator::last_blocks = uint64_t(count); }
extern "C" const char* simulator_failure() { return simulator::failure; }

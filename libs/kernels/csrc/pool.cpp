#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>

namespace janus {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLook = std::chrono::microseconds(50);  // before sleeping: layers follow each other within it

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Look at `ready` for a while: first in place, then letting others run in between.
template <class F>
bool look(const F &ready) {
    for (int i = 0; i < 64; ++i) {
        if (ready()) return true;
        relax();
    }
    const auto end = Clock::now() + kLook;
    do {
        if (ready()) return true;
        sched_yield();
    } while (Clock::now() < end);
    return ready();
}

}  // namespace

void Pool::retire() {
    std::lock_guard<std::mutex> turn(turn_);
    size_ = 1;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto &thread : threads_) thread.join();
    threads_.clear();
}

void Pool::share(int64_t count, Call call, const void *context) {
    while (static_cast<int>(threads_.size()) < size() - 1) threads_.emplace_back([this] { serve(); });
    call_ = call;
    context_ = context;
    count_ = count;
    finished_.store(0, std::memory_order_relaxed);
    const uint32_t job = static_cast<uint32_t>(ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(static_cast<uint64_t>(job) << 32 | static_cast<uint64_t>(count));
    if (sleepers_.load()) {
        std::lock_guard<std::mutex> hold(mutex_);
        wake_.notify_all();
    }
    while (take(job)) {
    }
    const auto all = [this] { return finished_.load(std::memory_order_acquire) == count_; };
    if (look(all)) return;
    std::unique_lock<std::mutex> hold(mutex_);
    done_.wait(hold, all);
}

// Take and do one piece of `job`; false when it has none left.
bool Pool::take(uint32_t job) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
        if (static_cast<uint32_t>(ticket >> 32) != job || static_cast<uint32_t>(ticket) == 0) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel));
    // This job cannot end before its piece is done, so what describes it stays.
    const int64_t count = count_;
    call_(context_, count - static_cast<int64_t>(static_cast<uint32_t>(ticket)));
    if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        std::lock_guard<std::mutex> hold(mutex_);
        done_.notify_one();
    }
    return true;
}

void Pool::serve() {
    while (!stop_) {
        if (!look([this] { return waiting(); })) sleep();
        const uint32_t job = static_cast<uint32_t>(ticket_.load(std::memory_order_acquire) >> 32);
        while (take(job)) {
        }
    }
}

void Pool::sleep() {
    std::unique_lock<std::mutex> hold(mutex_);
    ++sleepers_;
    wake_.wait(hold, [this] { return stop_ || waiting(); });
    --sleepers_;
}

namespace {

// Replaced, never destroyed at exit: threads must not be joined while the interpreter goes away.
std::atomic<Pool *> current{nullptr};
std::mutex replacing;

void after_fork() {
    const Pool *parents = current.load();
    current.store(new Pool(parents->size()));
}

}  // namespace

Pool &pool() {
    Pool *here = current.load(std::memory_order_acquire);
    if (!here) {
        resize_pool(1);
        here = current.load();
    }
    return *here;
}

void resize_pool(int size) {
    std::lock_guard<std::mutex> hold(replacing);
    Pool *before = current.load();
    if (before && before->size() == size) return;
    if (!before) pthread_atfork(nullptr, nullptr, after_fork);
    current.store(new Pool(size), std::memory_order_release);
    // Kept: another thread may be about to use it.
    if (before) before->retire();
}

}  // namespace janus

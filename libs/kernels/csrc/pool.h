// A bounded thread pool. Threads start with the first job, take pieces of one job at a time, look for more for
// a few tens of microseconds, and then sleep: an idle pool uses no processor.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace janus {

class Pool {
   public:
    explicit Pool(int size) : size_(size) {}
    // Threads that work on a job, the caller's included.
    int size() const { return size_.load(std::memory_order_relaxed); }

    // Lets its threads go; jobs still asked of it run on the caller's thread.
    void retire();

    // fn(i) for each i of [0, count), in any order on any thread; returns when all are done. A second caller at
    // the same time does its job alone, as does one with a single thread or piece.
    template <class F>
    void run(int64_t count, const F &fn) {
        std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
        if (size() <= 1 || count <= 1 || count > kMost || !turn.try_lock()) {
            for (int64_t i = 0; i < count; ++i) fn(i);
            return;
        }
        share(count, [](const void *f, int64_t i) { (*static_cast<const F *>(f))(i); }, &fn);
    }

   private:
    using Call = void (*)(const void *, int64_t);
    static constexpr int64_t kMost = 0xffffffff;

    void share(int64_t count, Call call, const void *context);
    bool take(uint32_t job);
    void serve();
    void sleep();
    bool waiting() const { return static_cast<uint32_t>(ticket_.load()) != 0; }

    std::atomic<int> size_;
    std::vector<std::thread> threads_;
    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    // Job number in the upper half, pieces not yet taken in the lower: a late thread cannot take another job's.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int64_t> finished_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    int64_t count_ = 0;
    Call call_ = nullptr;
    const void *context_ = nullptr;
};

// The process's pool. A child made by fork gets a fresh one of the same size, as threads do not cross a fork.
Pool &pool();
void resize_pool(int size);

}  // namespace janus

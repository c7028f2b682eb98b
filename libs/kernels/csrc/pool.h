// A bounded thread pool: chunks of one job at a time; idle threads sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace janus {

class Pool {
   public:
    ~Pool() { resize(1); }

    // Threads that work on a job, the caller's included; at least 1.
    void resize(int threads) {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            stop_ = true;
            ++generation_;
        }
        wake_.notify_all();
        for (auto &thread : threads_) thread.join();
        threads_.clear();
        stop_ = false;
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this, seen = generation_] { serve(seen); });
    }

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    // fn(i) for i of [0, count), in any order on any thread; returns when all are done.
    template <class F>
    void run(int64_t count, const F &fn) {
        if (threads_.empty() || count <= 1) {
            for (int64_t i = 0; i < count; ++i) fn(i);
            return;
        }
        std::lock_guard<std::mutex> one_job(job_mutex_);
        const std::function<void(int64_t)> call = [&fn](int64_t i) { fn(i); };
        {
            std::lock_guard<std::mutex> hold(mutex_);
            job_ = &call;
            count_ = count;
            next_.store(0);
            busy_ = static_cast<int>(threads_.size());
            ++generation_;
        }
        generation_seen_.store(generation_, std::memory_order_release);
        wake_.notify_all();
        work();
        std::unique_lock<std::mutex> hold(mutex_);
        done_.wait(hold, [this] { return busy_ == 0; });
        job_ = nullptr;
    }

   private:
    void work() {
        for (int64_t i; (i = next_.fetch_add(1)) < count_;) (*job_)(i);
    }

    // `seen`: the last job that this thread need not take part in.
    void serve(uint64_t seen) {
        while (true) {
            // Layers follow each other within microseconds: look a moment before sleeping.
            for (int spin = 0; spin < 2000 && generation_seen_.load(std::memory_order_acquire) == seen; ++spin)
                relax();
            {
                std::unique_lock<std::mutex> hold(mutex_);
                wake_.wait(hold, [&] { return generation_ != seen; });
                seen = generation_;
                if (stop_) return;
            }
            work();
            std::lock_guard<std::mutex> hold(mutex_);
            if (--busy_ == 0) done_.notify_one();
        }
    }

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_, job_mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int64_t)> *job_ = nullptr;
    int64_t count_ = 0;
    std::atomic<int64_t> next_{0};
    std::atomic<uint64_t> generation_seen_{0};
    uint64_t generation_ = 0;
    int busy_ = 0;
    bool stop_ = false;
};

}  // namespace janus

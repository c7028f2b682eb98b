// A bounded thread pool: chunks of one job at a time; idle threads sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace janus {

class Pool {
   public:
    ~Pool() { resize(1); }

    // Threads that work on a job, the caller's included; at least 1.
    void resize(int threads) {
        std::lock_guard<std::mutex> one_job(job_mutex_);
        {
            std::lock_guard<std::mutex> hold(mutex_);
            stop_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto &thread : threads_) thread.join();
        threads_.clear();
        stop_ = false;
        const uint64_t seen = generation_.load();
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this, seen] { serve(seen); });
    }

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    // fn(i, next) for i of [0, count), in any order on any thread; `next` is what the same thread does after
    // it, or -1. Returns when all are done. A thread that wakes too late is not waited for.
    template <class F>
    void run(int64_t count, const F &fn) {
        if (threads_.empty() || count <= 1) {
            for (int64_t i = 0; i < count; ++i) fn(i, i + 1 < count ? i + 1 : -1);
            return;
        }
        std::lock_guard<std::mutex> one_job(job_mutex_);
        const Job job{&fn, [](const void *f, int64_t i, int64_t next) { (*static_cast<const F *>(f))(i, next); },
                      count};
        bool asleep;
        {
            std::lock_guard<std::mutex> hold(mutex_);
            job_ = &job;
            next_.store(0, std::memory_order_relaxed);
            asleep = asleep_ > 0;
            generation_.fetch_add(1, std::memory_order_release);
        }
        if (asleep) wake_.notify_all();
        work(job);
        {
            std::lock_guard<std::mutex> hold(mutex_);
            job_ = nullptr;  // nobody joins from here on; those inside finish their last chunk
        }
        for (int spin = 0; spin < kSpins && inside_.load(std::memory_order_acquire) > 0; ++spin) relax();
        if (inside_.load(std::memory_order_acquire) == 0) return;
        std::unique_lock<std::mutex> hold(mutex_);
        done_.wait(hold, [this] { return inside_.load(std::memory_order_acquire) == 0; });
    }

   private:
    struct Job {
        const void *fn;
        void (*call)(const void *, int64_t, int64_t);
        int64_t count;
    };

    // The next chunk is taken before this one is done, so that its data can be asked for in time.
    void work(const Job &job) {
        int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
        while (i < job.count) {
            const int64_t next = next_.fetch_add(1, std::memory_order_relaxed);
            job.call(job.fn, i, next < job.count ? next : -1);
            i = next;
        }
    }

    // `seen`: the last job that this thread need not take part in.
    void serve(uint64_t seen) {
        while (true) {
            // Layers follow each other within tens of microseconds: look a moment before sleeping.
            for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) relax();
            const Job *job;
            {
                std::unique_lock<std::mutex> hold(mutex_);
                ++asleep_;
                wake_.wait(hold, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
                --asleep_;
                seen = generation_.load(std::memory_order_relaxed);
                if (stop_) return;
                job = job_;
                if (!job) continue;
                inside_.fetch_add(1, std::memory_order_relaxed);
            }
            work(*job);
            // Under the mutex, or the caller could check, find this thread inside, and miss the notice.
            std::lock_guard<std::mutex> hold(mutex_);
            if (inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.notify_one();
        }
    }

    static constexpr int kSpins = 1000;  // tens of microseconds

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_, job_mutex_;
    std::condition_variable wake_, done_;
    const Job *job_ = nullptr;
    std::atomic<int64_t> next_{0};
    std::atomic<uint64_t> generation_{0};
    std::atomic<int> inside_{0};
    int asleep_ = 0;
    bool stop_ = false;
};

}  // namespace janus

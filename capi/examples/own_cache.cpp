// The tracker alone, from C++: a map of blocks behind a mutex. Where `tracker.c` calls the
// library under one lock, here no lock is held while a page is claimed: a block is entered
// first, and then its claim is asked.
//
//     own_cache [MODE]         sigbus, thread, mprotect, deferred; "none" must fail
//
// told() may interrupt any thread, so it takes no lock: it raises a number of its page, which
// is compared before a block is run. Exits with 0 if no stale block was run.
#include <codewarden.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

namespace {

constexpr std::uint64_t guest = 0x40000000;
constexpr std::size_t page_bytes = 4096, pages = 16;
constexpr std::uint32_t rounds = 20000;

void must(cw_status status)
{
    if (status != CW_OK)
        throw std::runtime_error(cw_last_error_message());
}

struct FreeTracker {
    void operator()(cw_tracker *tracker) const { cw_tracker_free(tracker); }
};

struct Unmap {
    void operator()(std::uint8_t *memory) const { munmap(memory, pages * page_bytes); }
};

class Emulator {
public:
    explicit Emulator(cw_mode mode) : mode_(mode)
    {
        void *memory = mmap(nullptr, pages * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            throw std::runtime_error("mmap");
        memory_.reset(static_cast<std::uint8_t *>(memory));
        const auto options = cw_tracker_options_default(told, this);
        cw_tracker *tracker = nullptr;
        must(cw_tracker_new(&options, &tracker));
        tracker_.reset(tracker);
        const auto region = cw_region_options_default(guest, memory, pages * page_bytes, mode);
        must(cw_tracker_add_region(tracker, &region));
    }

    // A guest store.
    void store(std::size_t page, std::uint32_t value)
    {
        __atomic_store_n(reinterpret_cast<std::uint32_t *>(memory_.get() + page * page_bytes), value, __ATOMIC_SEQ_CST);
        if (mode_ == CW_MODE_DEFERRED)
            must(cw_tracker_sync(tracker_.get())); // the guest's fence
    }

    // The guest's instruction at the start of a page: "the result is N".
    std::uint32_t run(std::size_t page)
    {
        {
            const std::lock_guard hold(mutex_);
            const auto found = blocks_.find(page);
            if (found != blocks_.end() && found->second.number == numbers_[page].load())
                return found->second.result;
        }
        std::uint32_t result = 0;
        if (!translate(page, result)) // a block for one run
            std::memcpy(&result, memory_.get() + page * page_bytes, sizeof(result));
        return result;
    }

    std::atomic<unsigned long> told_of{0}, translated{0};

private:
    struct Block {
        std::uint32_t result;
        std::uint64_t number;
    };

    // In a signal handler: one atomic addition.
    static void told(void *emulator, std::uint64_t page, cw_told)
    {
        auto *self = static_cast<Emulator *>(emulator);
        self->numbers_[(page - guest) / page_bytes].fetch_add(1);
        self->told_of.fetch_add(1, std::memory_order_relaxed);
    }

    bool translate(std::size_t page, std::uint32_t &result)
    {
        const std::uint64_t pc = guest + page * page_bytes;
        cw_claim claim;
        const std::uint64_t number = numbers_[page].load();
        if (cw_tracker_claim(tracker_.get(), pc, &claim) != CW_OK)
            return false;
        if (cw_claim_read(&claim, pc, &result, sizeof(result)) != CW_OK)
            return false;
        must(cw_claim_add_code(&claim, pc, sizeof(result)));
        {
            const std::lock_guard hold(mutex_);
            blocks_[page] = Block{result, number};
        }
        translated.fetch_add(1, std::memory_order_relaxed);
        // A write before this question ends the claim; a later one finds the block.
        if (cw_claim_is_current(&claim))
            return true;
        numbers_[page].fetch_add(1);
        return false;
    }

    cw_mode mode_;
    // Freed in the order from last to first: the tracker before the memory and the numbers.
    std::mutex mutex_;
    std::map<std::size_t, Block> blocks_;
    std::array<std::atomic<std::uint64_t>, pages> numbers_{};
    std::unique_ptr<std::uint8_t, Unmap> memory_;
    std::unique_ptr<cw_tracker, FreeTracker> tracker_;
};

int stale_runs(cw_mode mode)
{
    Emulator emulator(mode);
    std::array<std::atomic<std::uint32_t>, pages> least{};
    std::atomic<bool> is_over{false};
    std::atomic<int> stale{0};
    std::thread writer([&] {
        for (std::uint32_t round = 1; round <= rounds; round++) {
            const std::size_t page = round % pages;
            emulator.store(page, round);
            least[page] = round;
            stale += emulator.run(page) != round;
        }
        is_over = true;
    });
    for (std::size_t runs = 0; !is_over; runs++) {
        const std::uint32_t expected = least[runs % pages];
        stale += emulator.run(runs % pages) < expected;
    }
    writer.join();
    std::printf("%s: %lu blocks, told %lu times; %d stale\n", cw_mode_name(mode), emulator.translated.load(),
                emulator.told_of.load(), stale.load());
    return stale;
}

} // namespace

int main(int argc, char **argv)
{
    alarm(120); // ends a wait that would never end
    try {
        cw_mode mode;
        must(argc > 1 ? cw_mode_from_name(argv[1], &mode) : cw_best_synchronous(&mode, nullptr));
        if (cw_mode_check(mode) == CW_MODE_UNAVAILABLE) {
            std::printf("SKIPPED %s\n", cw_last_error_message());
            return 0;
        }
        return stale_runs(mode) == 0 ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}

// The header in C++: handles in unique_ptr, freed in the right order by scope.
#include <codewarden.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <sys/mman.h>

namespace {

struct Free {
    void operator()(cw_cache *cache) const { cw_cache_free(cache); }
    void operator()(cw_ticket *ticket) const { cw_ticket_free(ticket); }
    void operator()(cw_vcpu *vcpu) const { cw_vcpu_free(vcpu); }
};
template <class T> using Handle = std::unique_ptr<T, Free>;

void must(cw_status status)
{
    if (status != CW_OK)
        throw std::runtime_error(cw_last_error_message());
}

template <class T, class Make> Handle<T> make(Make make)
{
    T *handle = nullptr;
    must(make(&handle));
    return Handle<T>(handle);
}

constexpr uint64_t guest = 0x10000;
constexpr size_t len = 0x10000;

bool is_coherent(uint8_t *memory)
{
    auto options = cw_cache_options_default();
    options.policy = CW_POLICY_PLAIN;
    auto cache = make<cw_cache>([&](auto out) { return cw_cache_new(&options, out); });
    cw_mode mode;
    must(cw_best_synchronous(&mode, nullptr));
    const auto region = cw_region_options_default(guest, memory, len, mode);
    must(cw_tracker_add_region(cw_cache_tracker(cache.get()), &region));
    {
        auto ticket = make<cw_ticket>([&](auto out) { return cw_cache_begin(cache.get(), guest, out); });
        must(cw_ticket_claim(ticket.get(), guest, nullptr));
        must(cw_ticket_commit(ticket.get(), 0x100, 0, new int(1), [](void *payload) { delete static_cast<int *>(payload); }));
    }
    auto vcpu = make<cw_vcpu>(
        [&](auto out) { return cw_cache_attach_vcpu(cache.get(), nullptr, nullptr, out); });
    cw_front front;
    must(cw_vcpu_front(vcpu.get(), &front));
    must(cw_vcpu_pin(vcpu.get()));
    const bool before = cw_lookup(vcpu.get(), &front, guest) == 0x100;
    const_cast<volatile uint8_t *>(memory)[0] = 1;
    const bool after = cw_lookup(vcpu.get(), &front, guest) == 0;
    must(cw_vcpu_unpin(vcpu.get()));
    return before && after;
}

} // namespace

int main()
{
    void *memory = mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    try {
        return is_coherent(static_cast<uint8_t *>(memory)) ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}

// Which of a function's variants runs: found out once, at run time, so that one library runs on every CPU.
#pragma once

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define HALFTONE_X86 1
#else
#define HALFTONE_X86 0
#endif

namespace halftone {

enum class InstructionSet : int {
    portable = 0,
    avx2 = 1,    // with FMA and F16C
    avx512 = 2,  // F, BW, DQ and VL
};

inline InstructionSet best_instruction_set() {
#if HALFTONE_X86
    static const InstructionSet best = [] {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return InstructionSet::avx512;
        // Every CPU with AVX2 has F16C, which older compilers do not know by name.
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
        return InstructionSet::portable;
    }();
    return best;
#else
    return InstructionSet::portable;
#endif
}

// `asked`, or the best that there is where that is less or `asked` is negative.
inline InstructionSet instruction_set(int asked) {
    const InstructionSet best = best_instruction_set();
    return asked < 0 || asked > static_cast<int>(best) ? best : static_cast<InstructionSet>(asked);
}

}  // namespace halftone

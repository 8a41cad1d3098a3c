// What the library says about itself.
#include <cstdint>

#include "instruction_set.h"

#ifndef HALFTONE_SOURCE_DIGEST
#define HALFTONE_SOURCE_DIGEST ""
#endif

extern "C" {

// Counts the changes of this interface; library.py wants its own number back.
std::int32_t halftone_abi_version() { return 2; }

// Of the files that the library was built from; see build.py.
const char* halftone_source_digest() { return HALFTONE_SOURCE_DIGEST; }

// The best that this CPU runs; see instruction_set.h for the numbers.
std::int32_t halftone_instruction_set() { return static_cast<std::int32_t>(halftone::best_instruction_set()); }
}

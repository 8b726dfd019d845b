// The generated data behind unicode.h and regex.h; tools/make_unicode_tables.py says where it comes from.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ssm {

// From U+0000 on: the next `run >> 9` code points share the class bits `run & 511` (unicode.h names them).
extern const uint32_t kUnicodeRuns[];
extern const size_t kUnicodeRunCount;

// Every `step`-th code point of [first, last] has its lower case `delta` further on.
struct LowerRun {
  uint32_t first, last, step;
  int32_t delta;
};
extern const LowerRun kLowerRuns[];
extern const size_t kLowerRunCount;

// Characters newer than Unicode 14, by general category or script: what \p{NAME} must match besides what a regex
// library of that version knows.
struct AddedRange {
  const char* name;
  uint32_t first, last;
};
extern const AddedRange kAddedRanges[];
extern const size_t kAddedRangeCount;

}  // namespace ssm

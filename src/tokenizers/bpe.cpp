// Byte pair encoding: a word begins as its characters; then, again and again, the pair of neighbours with the smallest
// rank is merged, the leftmost first. A heap of the pairs makes that O(n log n) for a word of n characters.
//
// Entries of the heap are (rank, place) in one number. An entry whose pair is gone is recognised when it comes up: the
// symbols at its place are no pair of that rank any more.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <functional>

#include "core/error.h"
#include "tokenizers/utf8.h"
#include "tokenizers/word_model.h"

namespace ssm {
namespace {

constexpr int32_t kNone = -1;

// Pairs of ids to the rank of their merge and the id that it makes. Open addressing.
class Merges {
 public:
  struct Merge {
    uint32_t rank;
    int32_t made;
  };

  explicit Merges(size_t count) : slots_(std::bit_ceil(count * 2 + 1)) {}

  void set(int64_t left, int64_t right, Merge merge) {
    const uint64_t key = key_of(static_cast<int32_t>(left), static_cast<int32_t>(right));
    size_t slot = first_slot(key);
    while (slots_[slot].key != kEmpty && slots_[slot].key != key) slot = (slot + 1) & (slots_.size() - 1);
    slots_[slot] = {key, merge};
  }

  const Merge* find(int32_t left, int32_t right) const {
    const uint64_t key = key_of(left, right);
    for (size_t slot = first_slot(key); slots_[slot].key != kEmpty; slot = (slot + 1) & (slots_.size() - 1))
      if (slots_[slot].key == key) return &slots_[slot].merge;
    return nullptr;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // ids are not negative
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge{};
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t first_slot(uint64_t key) const {
    const uint64_t hash = key * 0x9E3779B97F4A7C15;
    return (hash ^ hash >> 32) & (slots_.size() - 1);
  }
  std::vector<Slot> slots_;
};

// Words seen before and their ids: a table of fixed size, where a newer word takes the place of an older one.
class WordCache {
 public:
  static constexpr size_t kLongest = 27, kMostIds = 8;

  WordCache() : entries_(kEntries) {}

  bool find(std::string_view word, uint64_t hash, std::vector<int64_t>& ids) const {
    const Entry& entry = entries_[hash & (kEntries - 1)];
    if (entry.length != word.size() || std::memcmp(entry.word.data(), word.data(), word.size()) != 0) return false;
    ids.insert(ids.end(), entry.ids.begin(), entry.ids.begin() + entry.count);
    return true;
  }

  void put(std::string_view word, uint64_t hash, const int64_t* ids, size_t count) {
    if (count > kMostIds) return;
    Entry& entry = entries_[hash & (kEntries - 1)];
    entry.length = static_cast<uint8_t>(word.size());
    entry.count = static_cast<uint8_t>(count);
    std::memcpy(entry.word.data(), word.data(), word.size());
    for (size_t i = 0; i < count; ++i) entry.ids[i] = static_cast<int32_t>(ids[i]);
  }

 private:
  static constexpr size_t kEntries = 1 << 15;  // 2 MiB
  struct Entry {
    uint8_t length = 0, count = 0;  // length 0: free, words are not empty
    std::array<char, kLongest> word;
    std::array<int32_t, kMostIds> ids;
  };
  std::vector<Entry> entries_;
};

struct Symbol {
  int32_t id;
  int32_t previous, next;  // kNone at the ends; an id of kNone marks a symbol that was merged away
};

struct BpeScratch : WordModel::Scratch {
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<uint64_t> heap;
};

class Bpe : public WordModel {
 public:
  Bpe(const Component& part, Vocabulary vocabulary)
      : vocabulary_(std::move(vocabulary)),
        prefix_(part.text("continuing_subword_prefix", "")),
        suffix_(part.text("end_of_word_suffix", "")),
        fuse_unknown_(part.flag("fuse_unk", false)),
        ignore_merges_(part.flag("ignore_merges", false)),
        merges_(part.array("merges").size()) {
    if (const Json* dropout = part.find("dropout"))
      require(dropout->is_number() && dropout->get<double>() == 0, part.where(), ".dropout is ", dropout->dump(),
              "; a tokenizer that draws at random is not supported");
    read_merges(part);
    if (const std::string unknown = part.text("unk_token", ""); part.find("unk_token")) {
      const auto id = vocabulary_.id_of(unknown);
      unknown_ = id ? static_cast<int32_t>(*id) : kMissing;
      unknown_name_ = part.where() + ".unk_token " + unknown;
    }
    if (part.flag("byte_fallback", false))
      for (unsigned byte = 0; byte < 256; ++byte) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", byte);
        const auto id = vocabulary_.id_of(name);
        byte_ids_[byte] = id ? static_cast<int32_t>(*id) : kNone;
      }
    else
      byte_ids_.fill(kNone);
    for (char32_t point = 0; point < character_ids_.size(); ++point) {
      std::string character;
      append_utf8(character, point);
      const auto id = vocabulary_.id_of(character);
      character_ids_[point] = id ? static_cast<int32_t>(*id) : kNone;
    }
  }

  std::unique_ptr<Scratch> make_scratch() const override { return std::make_unique<BpeScratch>(); }
  const Vocabulary& vocabulary() const override { return vocabulary_; }

  void encode(std::string_view word, Scratch& scratch_base, std::vector<int64_t>& ids) const override {
    if (word.empty()) return;
    auto& scratch = static_cast<BpeScratch&>(scratch_base);
    const bool cached = word.size() <= WordCache::kLongest;
    const uint64_t hash = cached ? hash_bytes(word) : 0;
    if (cached && scratch.cache.find(word, hash, ids)) return;
    const size_t before = ids.size();
    if (const auto whole = ignore_merges_ ? vocabulary_.id_of(word) : std::nullopt) {
      ids.push_back(*whole);
    } else {
      begin_symbols(word, scratch.symbols);
      merge(scratch.symbols, scratch.heap);
      for (const Symbol& symbol : scratch.symbols)
        if (symbol.id != kNone) ids.push_back(symbol.id);
    }
    if (cached) scratch.cache.put(word, hash, ids.data() + before, ids.size() - before);
  }

 private:
  static constexpr int32_t kMissing = -2;  // the file names an unknown token that it does not have

  void read_merges(const Component& part) {
    const Json& merges = part.array("merges");
    uint32_t rank = 0;
    std::string whole;
    for (size_t i = 0; i < merges.size(); ++i) {
      const Json& merge = merges[i];
      const auto wrong = [&](const auto&... parts) { throw Error(part.where(), ".merges[", i, "]", parts...); };
      std::string_view left, right;
      if (merge.is_string()) {
        const std::string_view line = merge.get_ref<const std::string&>();
        if (line.starts_with("#version")) continue;
        const size_t space = line.find(' ');
        if (space == line.npos || line.find(' ', space + 1) != line.npos)
          wrong(" is \"", line, "\", expected two strings with a space between them");
        left = line.substr(0, space);
        right = line.substr(space + 1);
      } else {
        if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string())
          wrong(" is ", merge.type_name(), ", expected two strings");
        left = merge[0].get_ref<const std::string&>();
        right = merge[1].get_ref<const std::string&>();
      }
      const auto id_of = [&](std::string_view string) {
        const auto id = vocabulary_.id_of(string);
        if (!id) wrong(": \"", string, "\" is not in the vocabulary");
        return *id;
      };
      const int64_t left_id = id_of(left), right_id = id_of(right);
      if (right.size() < prefix_.size()) wrong(": \"", right, "\" is shorter than the continuing_subword_prefix");
      whole.assign(left);
      whole += right.substr(prefix_.size());
      merges_.set(left_id, right_id, {rank++, static_cast<int32_t>(id_of(whole))});
    }
  }

  int32_t id_of_character(std::string_view word, size_t begin, size_t end) const {
    const bool first = begin == 0, last = end == word.size();
    const bool plain = (first || prefix_.empty()) && (!last || suffix_.empty());
    const std::string_view character = word.substr(begin, end - begin);
    if (plain) {
      if (const char32_t point = point_at(word, begin); point < character_ids_.size()) return character_ids_[point];
      const auto id = vocabulary_.id_of(character);
      return id ? static_cast<int32_t>(*id) : kNone;
    }
    const auto id = vocabulary_.id_of(decorated(character, first, last));
    return id ? static_cast<int32_t>(*id) : kNone;
  }

  std::string decorated(std::string_view character, bool first, bool last) const {
    std::string result = first ? "" : prefix_;
    result += character;
    if (last) result += suffix_;
    return result;
  }

  // The characters of a word, the unknown ones as bytes, as the unknown token, or not at all.
  void begin_symbols(std::string_view word, std::vector<Symbol>& symbols) const {
    require(word.size() < INT32_MAX, "a word of ", word.size(), " bytes; at most 2 GiB are supported");
    symbols.clear();
    const auto add = [&](int32_t id) {
      const auto place = static_cast<int32_t>(symbols.size());
      if (place > 0) symbols.back().next = place;
      symbols.push_back({id, place - 1, kNone});
    };
    bool unknown_waits = false;  // it is written when what follows is known, so that several can be one
    for (size_t at = 0; at < word.size();) {
      const size_t begin = at;
      next_point(word, at);
      const int32_t id = id_of_character(word, begin, at);
      if (id != kNone) {
        if (unknown_waits) add(unknown_);
        unknown_waits = false;
        add(id);
        continue;
      }
      const std::string bytes = decorated(word.substr(begin, at - begin), begin == 0, at == word.size());
      const auto has_id = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] != kNone; };
      if (std::all_of(bytes.begin(), bytes.end(), has_id)) {
        for (const char c : bytes) add(byte_ids_[static_cast<unsigned char>(c)]);
        continue;
      }
      if (unknown_ == kNone) continue;
      require(unknown_ != kMissing, unknown_name_, " is not in the vocabulary, but a text needs it");
      if (unknown_waits && !fuse_unknown_) add(unknown_);
      unknown_waits = true;
    }
    if (unknown_waits) add(unknown_);
  }

  void merge(std::vector<Symbol>& symbols, std::vector<uint64_t>& heap) const {
    heap.clear();
    const auto pair_at = [&](int32_t place) -> const Merges::Merge* {
      const Symbol& left = symbols[static_cast<size_t>(place)];
      return left.next == kNone ? nullptr : merges_.find(left.id, symbols[static_cast<size_t>(left.next)].id);
    };
    const auto entry = [](uint32_t rank, int32_t place) {
      return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(place);
    };
    for (int32_t place = 0; place + 1 < static_cast<int32_t>(symbols.size()); ++place)
      if (const auto* merge = pair_at(place)) heap.push_back(entry(merge->rank, place));
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      const uint64_t top = heap.back();
      heap.pop_back();
      const auto place = static_cast<int32_t>(top & 0xFFFFFFFF);
      Symbol& left = symbols[static_cast<size_t>(place)];
      if (left.id == kNone) continue;
      const Merges::Merge* merge = pair_at(place);
      if (!merge || merge->rank != top >> 32) continue;
      Symbol& right = symbols[static_cast<size_t>(left.next)];
      left.id = merge->made;
      left.next = right.next;
      right.id = kNone;
      if (left.next != kNone) symbols[static_cast<size_t>(left.next)].previous = place;
      for (const int32_t changed : {left.previous, place}) {
        if (changed == kNone) continue;
        if (const auto* made = pair_at(changed)) {
          heap.push_back(entry(made->rank, changed));
          std::push_heap(heap.begin(), heap.end(), std::greater<>());
        }
      }
    }
  }

  Vocabulary vocabulary_;
  std::string prefix_, suffix_;
  bool fuse_unknown_, ignore_merges_;
  Merges merges_;
  int32_t unknown_ = kNone;
  std::string unknown_name_;
  std::array<int32_t, 256> byte_ids_{};
  std::array<int32_t, 0x300> character_ids_{};  // the byte alphabet lies below U+0144
};

}  // namespace

std::unique_ptr<WordModel> make_bpe(const Component& part) {
  return std::make_unique<Bpe>(part, Vocabulary(vocabulary_entries(part), part.where() + ".vocab"));
}

}  // namespace ssm

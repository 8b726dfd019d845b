// tokenizer.json files: exactness against stored results of the package they come from, refusal of what is not
// supported, damaged and hostile files, long and ill-formed texts.
#include "tokenizers/tokenizer_json.h"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include "core/error.h"
#include "formats/test_files.h"

namespace ssm {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int64_t>;

Path data(const char* name) { return Path(SSM_SOURCE_ROOT) / "src/tokenizers/testdata" / name; }

std::unique_ptr<Tokenizer> open_json(const ScratchDirectory& scratch, const Json& json) {
  return open_tokenizer(scratch.file("tokenizer.json", json.dump()).string());
}

const Tokenizer& neox() {
  static const auto tokenizer = open_tokenizer(data("gpt-neox-20b").string());
  return *tokenizer;
}

// A byte-level tokenizer with one merge and nothing else.
Json tiny() {
  return Json::parse(R"({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
    "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}})");
}

Json added(int64_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

double seconds_of(const std::function<void()>& job) {
  const auto start = std::chrono::steady_clock::now();
  job();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(TokenizerJson, GptNeoXGivesTheIdsOfTheMptStrings) {
  const std::string all = read_text(data("mpt_strings.txt"));
  std::istringstream lines(read_text(data("mpt_ids.txt")));
  constexpr std::string_view kMark = "\n__ggml_vocab_test__\n";
  int strings = 0;
  for (size_t at = 0; at <= all.size();) {
    const size_t end = std::min(all.find(kMark, at), all.size());
    const std::string string = all.substr(at, end - at);
    at = end + kMark.size();
    std::string line;
    std::getline(lines, line);
    std::istringstream numbers(line);
    const Ids expected{std::istream_iterator<int64_t>(numbers), {}};
    EXPECT_EQ(neox().encode(string), expected) << string;
    EXPECT_EQ(neox().decode(expected), string);
    ++strings;
  }
  EXPECT_GE(strings, 43);
}

TEST(TokenizerJson, GptNeoXKnowsItsTokens) {
  EXPECT_EQ(neox().vocab(), 50277);
  EXPECT_EQ(neox().end_of_text(), std::optional<int64_t>(0));
  EXPECT_TRUE(neox().is_special(1));
  EXPECT_FALSE(neox().is_special(50276));
  EXPECT_EQ(neox().bytes_of(50276), "  ");
  EXPECT_EQ(neox().encode("Hi<|endoftext|>  there").size(), 4u);
  EXPECT_EQ(neox().encode("Hi<|endoftext|>"), neox().encode_with_specials("Hi<|endoftext|>"));
  EXPECT_THROW(neox().bytes_of(50277), Error);
  EXPECT_THROW(neox().decode(Ids{-1}), Error);
  // A character in pieces: the bytes of its ids, joined, are whole; a text of one piece is not.
  const Ids ids = neox().encode("\xF0\x93\x80\x80");
  ASSERT_GT(ids.size(), 1u);
  std::string bytes;
  for (const int64_t id : ids) bytes += neox().bytes_of(id);
  EXPECT_EQ(bytes, "\xF0\x93\x80\x80");
  EXPECT_EQ(neox().decode(std::span(ids).first(1)), "\xEF\xBF\xBD");
}

TEST(TokenizerJson, SmallTokenizersOfEveryKindGiveWhatThePackageGives) {
  const Json golden = Json::parse(read_text(data("small_tokenizers.json")));
  const ScratchDirectory scratch;
  size_t cases = 0;
  for (const Json& one : golden["cases"]) {
    const auto tokenizer = open_json(scratch, one["tokenizer"]);
    for (size_t i = 0; i < golden["texts"].size(); ++i) {
      SCOPED_TRACE(one["name"].get<std::string>() + ", text " + std::to_string(i));
      const std::string text = golden["texts"][i];
      const Ids ids = tokenizer->encode_with_specials(text);
      EXPECT_EQ(ids, one["expected"][i]["ids"].get<Ids>());
      EXPECT_EQ(tokenizer->encode(text), one["expected"][i]["plain"].get<Ids>());
      EXPECT_EQ(tokenizer->decode(ids), one["expected"][i]["text"].get<std::string>());
      for (const int64_t id : ids) tokenizer->bytes_of(id);
    }
    ++cases;
  }
  EXPECT_GT(cases, 40u);
}

TEST(TokenizerJson, EndOfTextComesFromTheConfigOrAWellKnownName) {
  const ScratchDirectory scratch;
  Json json = tiny();
  json["added_tokens"] = {added(4, "<end>"), added(5, "</s>")};
  EXPECT_EQ(open_json(scratch, json)->end_of_text(), std::optional<int64_t>(5));
  scratch.file("tokenizer_config.json", R"({"eos_token": "<end>"})");
  EXPECT_EQ(open_json(scratch, json)->end_of_text(), std::optional<int64_t>(4));
  scratch.file("tokenizer_config.json", R"({"eos_token": {"content": "c"}})");
  EXPECT_EQ(open_json(scratch, json)->end_of_text(), std::optional<int64_t>(3));
  scratch.file("tokenizer_config.json", R"({"eos_token": 5})");
  EXPECT_THROW(open_json(scratch, json), Error);
}

TEST(TokenizerJson, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(neox().encode("a\xFF"
                          "b\xE2\x82z\xED\xA0\x80"),
            neox().encode("a" + r + "b" + r + "z" + r + r + r));
  EXPECT_EQ(neox().encode("\xC3"), neox().encode(r));
}

TEST(TokenizerJson, LongWordsTakeTimeInProportion) {
  const std::string letters(5000, 'x');
  std::string random_letters;
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i) random_letters += static_cast<char>('a' + random() % 26);
  Ids ids;
  EXPECT_LT(seconds_of([&] { ids = neox().encode(letters); }), 0.5);
  EXPECT_EQ(neox().decode(ids), letters);
  EXPECT_LT(seconds_of([&] { ids = neox().encode(random_letters); }), 20);  // quadratic time would be hours
  EXPECT_EQ(neox().decode(ids), random_letters);
}

TEST(TokenizerJson, SeveralThreadsMayEncodeAtOnce) {
  const std::string text = read_text(data("mpt_strings.txt"));
  const Ids expected = neox().encode(text);
  std::vector<std::thread> threads;
  std::vector<Ids> results(4);
  for (Ids& result : results)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = neox().encode(text);
    });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST(TokenizerJson, WhatIsNotSupportedIsNamed) {
  const ScratchDirectory scratch;
  const auto refuses = [&](std::string_view part, const std::function<void(Json&)>& edit) {
    Json json = tiny();
    edit(json);
    EXPECT_TRUE(fails_with(part, [&] { open_json(scratch, json); }));
  };
  refuses("normalizer Precompiled", [](Json& j) { j["normalizer"] = {{"type", "Precompiled"}}; });
  refuses("pre_tokenizer.pretokenizers[0]: the pre-tokenizer UnicodeScripts", [](Json& j) {
    j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "UnicodeScripts"}}}}};
  });
  refuses("decoder CTC", [](Json& j) { j["decoder"] = {{"type", "CTC"}}; });
  refuses("post-processor Odd", [](Json& j) { j["post_processor"] = {{"type", "Odd"}}; });
  refuses("model type \"Unigram\"", [](Json& j) { j["model"]["type"] = "Unigram"; });
  refuses("dropout is 0.1", [](Json& j) { j["model"]["dropout"] = 0.1; });
  refuses("version 2.0", [](Json& j) { j["version"] = "2.0"; });
  refuses("behavior Sideways", [](Json& j) {
    j["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Sideways"}, {"invert", false}};
  });
  refuses("\\X", [](Json& j) {
    j["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", "\\X"}}}, {"behavior", "Isolated"}, {"invert", false}};
  });
}

TEST(TokenizerJson, DamagedFilesAreErrors) {
  const ScratchDirectory scratch;
  const auto refuses = [&](std::string_view part, const std::function<void(Json&)>& edit) {
    Json json = tiny();
    edit(json);
    EXPECT_TRUE(fails_with(part, [&] { open_json(scratch, json); }));
  };
  refuses("the id of \"a\" is 1000000000000000000", [](Json& j) { j["model"]["vocab"]["a"] = 1000000000000000000; });
  refuses("the id of \"a\" is -1", [](Json& j) { j["model"]["vocab"]["a"] = -1; });
  refuses("the id of \"a\" is string", [](Json& j) { j["model"]["vocab"]["a"] = "0"; });
  refuses("the id 1 belongs to two strings", [](Json& j) { j["model"]["vocab"]["a"] = 1; });
  refuses("\"z\" is not in the vocabulary", [](Json& j) { j["model"]["merges"] = {"a z"}; });
  refuses("\"ac\" is not in the vocabulary", [](Json& j) {
    j["model"]["merges"] = Json::array({Json::array({"a", "c"})});
  });
  refuses("expected two strings", [](Json& j) { j["model"]["merges"] = {"ab"}; });
  refuses("merges[0] is number", [](Json& j) { j["model"]["merges"] = {7}; });
  refuses("expected an array", [](Json& j) { j["model"]["merges"] = "a b"; });
  refuses("expected one character", [](Json& j) { j["decoder"] = {{"type", "Metaspace"}, {"replacement", "ab"}}; });
  refuses("at most 4096", [](Json& j) { j["added_tokens"] = {added(4, std::string(5000, 'x'))}; });
  refuses("the id 77 is not in the vocabulary", [](Json& j) {
    j["post_processor"] = {{"type", "BertProcessing"}, {"cls", {"a", 77}}, {"sep", {"b", 1}}};
  });
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_TRUE(fails_with("nested", [&] { open_tokenizer(scratch.file("tokenizer.json", deep).string()); }));
  EXPECT_TRUE(fails_with("is a JSON array", [&] { open_tokenizer(scratch.file("tokenizer.json", "[]").string()); }));
  EXPECT_TRUE(fails_with("", [&] { open_tokenizer(scratch.file("tokenizer.json", "").string()); }));
}

TEST(TokenizerJson, LargeIdsAndGapsCostNothing) {
  const ScratchDirectory scratch;
  Json json = tiny();
  json["model"]["vocab"]["c"] = 2'000'000'000;
  const auto tokenizer = open_json(scratch, json);
  EXPECT_EQ(tokenizer->vocab(), 2'000'000'001);
  EXPECT_EQ(tokenizer->encode("abcab"), (Ids{2, 2'000'000'000, 2}));
  EXPECT_EQ(tokenizer->bytes_of(2'000'000'000), "c");
  EXPECT_THROW(tokenizer->bytes_of(5), Error);
}

// Mutates a file that has a bit of everything 1,000 times. Both outcomes must occur.
TEST(TokenizerJson, MutatedFilesAreErrorsOrWork) {
  const Json golden = Json::parse(read_text(data("small_tokenizers.json")));
  const ScratchDirectory scratch;
  std::mt19937_64 random(20240501);
  int opened = 0, refused = 0;
  for (int round = 0; round < 1000; ++round) {
    const Json& one = golden["cases"][static_cast<size_t>(round) % golden["cases"].size()];
    std::string bytes = one["tokenizer"].dump();
    for (uint64_t i = 0; i <= random() % 3; ++i) {
      // Half of the time outside the vocabulary, where the settings are.
      const size_t model = bytes.find("\"vocab\"");
      const size_t at = random() % 2 ? random() % bytes.size() : random() % std::min(model, bytes.size());
      switch (random() % 6) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes.erase(at, 1 + random() % 9); break;
        case 2: bytes.insert(at, 1 + random() % 3, "[]{}\",:0e-\\t"[random() % 12]); break;
        case 3: bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8)); break;
        case 4:
          if (random() % 4 == 0) bytes.resize(at);
          break;
        case 5: {  // a number becomes an extreme one, a flag its opposite
          const size_t digit = bytes.find_first_of("0123456789", at);
          const size_t flag = bytes.find("true", at);
          if (random() % 2 && flag != std::string::npos)
            bytes.replace(flag, 4, "false");
          else if (digit != std::string::npos)
            bytes.replace(digit, 1, "99999999999");
          break;
        }
      }
      if (bytes.empty()) bytes = "{";
    }
    try {
      const auto tokenizer = open_tokenizer(scratch.file("tokenizer.json", bytes).string());
      for (const auto& text : golden["texts"]) {
        const Ids ids = tokenizer->encode_with_specials(text.get<std::string>());
        tokenizer->decode(ids);
        for (const int64_t id : ids) tokenizer->bytes_of(id);
      }
      ++opened;
    } catch (const Error& error) {
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(opened, 50);
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace ssm

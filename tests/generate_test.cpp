// `ssm generate` and `ssm evaluate` as their users run them: samples, batches, talks, long prompts, interrupts.
#include <cmath>

#include "core/rng.h"
#include "tests/program.h"

namespace ssm {
namespace {

class GenerateProgram : public Program {
 protected:
  Words base(const Words& more) const {
    Words words = {"generate", "--model", arg("model")};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  Json json_of(const Words& more) const {
    Words words = base(more);
    words.push_back("--json");
    return expect_done(words).json();
  }
  static std::vector<Json> lines_of(const std::string& out) {
    std::vector<Json> lines;
    for (size_t begin = 0; begin < out.size();) {
      const size_t end = out.find('\n', begin);
      lines.push_back(Json::parse(out.substr(begin, end - begin)));
      begin = end + 1;
    }
    return lines;
  }
  // What is typed, through a pipe.
  Outcome talk(const std::string& typed, const std::string& options = "") const {
    file("typed", typed);
    return shell(SSM_PROGRAM " generate --interactive --json --max-tokens 6 --model " + arg("model") + " " + options +
                 " < " + arg("typed"));
  }
};

TEST_F(GenerateProgram, SamplesComeFromOneReadingAndTheFirstIsThatOfARunOfOne) {
  const Words options = {"--prompt", "Hello", "--max-tokens", "12", "--seed", "9"};
  const auto with = [&](const Words& more) {
    Words words = options;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  const Json one = json_of(options), many = json_of(with({"--samples", "20"}));
  ASSERT_EQ(many["samples"].size(), 20u);
  EXPECT_EQ(many["samples"][0]["ids"], one["ids"]);
  EXPECT_EQ(many["ids"], one["ids"]);
  EXPECT_EQ(many["tokens"], 240);
  EXPECT_EQ(many["prompt_tokens"], 5);
  std::set<std::string> different;
  for (const Json& sample : many["samples"]) different.insert(sample["ids"].dump());
  EXPECT_EQ(different.size(), 20u);
  EXPECT_EQ(json_of(with({"--samples", "20", "--parallel", "3"}))["samples"], many["samples"]);
  const std::string text = expect_done(base(with({"--samples", "2"}))).out;
  EXPECT_TRUE(text.starts_with("=== sample 1 of 2 ===\n" + std::string(one["text"])));
  EXPECT_NE(text.find("\n=== sample 2 of 2 ===\n" + std::string(many["samples"][1]["text"])), std::string::npos);
}

TEST_F(GenerateProgram, ABatchGivesWhatEachLineGivesAlone) {
  file("in.jsonl",
       "{\"prompt\": \"Hello\", \"id\": \"first\", \"max_tokens\": 30}\n"
       "\n"
       "{\"ids\": [72, 101], \"id\": 7, \"max_tokens\": 3, \"temperature\": 0}\r\n"
       "{\"prompt\": \"The quick brown fox jumps over the lazy dog.\", \"seed\": 5, \"top_k\": 4}\n"
       "{\"prompt\": \"x\", \"top_logprobs\": 2, \"max_tokens\": 2, \"frequency_penalty\": 0.5}");
  for (const std::string parallel : {"1", "2", "16"}) {
    const Outcome outcome =
        expect_done(base({"--batch", arg("in.jsonl"), "--max-tokens", "10", "--seed", "3", "--parallel", parallel}));
    const std::vector<Json> lines = lines_of(outcome.out);
    ASSERT_EQ(lines.size(), 4u) << outcome.out;
    for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(lines[static_cast<size_t>(i)]["index"], i);
    EXPECT_EQ(lines[0]["id"], "first");
    EXPECT_EQ(lines[1]["id"], 7);
    EXPECT_FALSE(lines[2].contains("id"));
    EXPECT_EQ(lines[0]["ids"], json_of({"--prompt", "Hello", "--max-tokens", "30", "--seed", "3"})["ids"]);
    EXPECT_EQ(lines[1]["ids"], json_of({"--prompt", "He", "--max-tokens", "3", "--temperature", "0"})["ids"]);
    EXPECT_EQ(lines[2]["ids"], json_of({"--prompt", "The quick brown fox jumps over the lazy dog.", "--max-tokens",
                                        "10", "--seed", "5", "--top-k", "4"})["ids"]);
    EXPECT_EQ(lines[3]["logprobs"][1]["top"].size(), 2u);
    EXPECT_EQ(lines[3]["logprobs"], json_of({"--prompt", "x", "--max-tokens", "2", "--seed", "3", "--top-logprobs", "2",
                                             "--frequency-penalty", "0.5"})["logprobs"]);
  }
  // Every line goes on from one state.
  expect_done(base({"--prompt", "Hello", "--max-tokens", "0", "--state-out", arg("state")}));
  file("on.jsonl", "{\"prompt\": \" world\"}\n{\"prompt\": \"\"}\n");
  const std::vector<Json> lines =
      lines_of(expect_done(base({"--batch", arg("on.jsonl"), "--state-in", arg("state"), "--max-tokens", "4"})).out);
  EXPECT_EQ(lines[0]["ids"], json_of({"--prompt", " world", "--state-in", arg("state"), "--max-tokens", "4"})["ids"]);
  EXPECT_EQ(lines[1]["ids"], json_of({"--prompt", "Hello", "--max-tokens", "4"})["ids"]);
}

TEST_F(GenerateProgram, AHostileLineIsNamedAndCostsNoResult) {
  const std::string good = "{\"prompt\": \"Hello\", \"max_tokens\": 3}\n";
  for (const auto& [bad, part] : std::vector<std::pair<std::string, std::string>>{
           {"nonsense", "line 3"},
           {"[1, 2]", "is no object"},
           {"{\"prompt\": 3}", "expected a string"},
           {"{\"prompt\": \"x\", \"ids\": [1]}", "both prompt and ids"},
           {"{\"max_tokens\": 3}", "neither prompt nor ids"},
           {"{\"prompt\": \"x\", \"temprature\": 1}", "did you mean \\\"temperature\\\""},
           {"{\"prompt\": \"x\", \"temperature\": -1}", "temperature is -1"},
           {"{\"prompt\": \"x\", \"max_tokens\": -5}", "max_tokens is -5"},
           {"{\"prompt\": \"x\", \"stop\": \"\"}", "stop is empty"},
           {"{\"ids\": [256]}", "outside the vocabulary"},
           {"{\"prompt\": \"\"}", "the prompt is empty"},
           {"{\"prompt\": \"x\", \"prompt\": \"y\"}", "line 3"},
           {std::string(100000, '['), "line 3"},
           {"{\"prompt\": \"\xff\"}", "line 3"}}) {
    file("in.jsonl", good + good + bad + "\n" + good);
    const Outcome outcome = run(base({"--batch", arg("in.jsonl"), "--quiet"}));
    EXPECT_EQ(outcome.code, 1) << bad.substr(0, 80);
    std::string unescaped = part;
    std::erase(unescaped, '\\');
    EXPECT_NE(outcome.err.find(unescaped), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("line 3"), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_EQ(lines_of(outcome.out).size(), 2u) << bad.substr(0, 80);
  }
  expect_usage(base({"--batch", "x", "--prompt", "y"}), "--batch and --prompt do not go together");
  expect_error(base({"--batch", arg("none.jsonl")}), "none.jsonl");
}

TEST_F(GenerateProgram, LogprobsHaveAlternatives) {
  const Json greedy = json_of({"--prompt", "Hello", "--max-tokens", "5", "--temperature", "0", "--top-logprobs", "3"});
  ASSERT_EQ(greedy["logprobs"].size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    const Json& entry = greedy["logprobs"][i];
    EXPECT_EQ(entry["id"], greedy["ids"][i]);
    ASSERT_EQ(entry["top"].size(), 3u);
    EXPECT_EQ(entry["top"][0]["id"], entry["id"]);
    EXPECT_EQ(entry["top"][0]["logprob"], entry["logprob"]);
    EXPECT_GE(double(entry["top"][1]["logprob"]), double(entry["top"][2]["logprob"]));
  }
  const Outcome lines = expect_done(base({"--prompt", "Hello", "--max-tokens", "2", "--top-logprobs", "1"}));
  EXPECT_EQ(std::count(lines.out.begin(), lines.out.end(), '\t'), 2 * 5);
}

TEST_F(GenerateProgram, StopTextsMayBeLongAndMany) {
  const Json whole = json_of({"--prompt", "Hello", "--max-tokens", "200"});
  std::string bytes;
  for (const int64_t id : std::vector<int64_t>(whole["ids"])) bytes += static_cast<char>(id);
  Words words = {"--prompt", "Hello", "--max-tokens", "200", "--stop", std::string(10000, 'x')};
  for (int i = 0; i < 500; ++i) words.push_back(text("never", i, "written"));
  EXPECT_EQ(json_of(words)["ids"], whole["ids"]);
  // Stopped by the first plain byte of the text.
  const size_t at = bytes.find_first_of("abcdefghijklmnopqrstuvwxyz");
  ASSERT_NE(at, std::string::npos);
  words.push_back(bytes.substr(at, 1));
  const Json stopped = json_of(words);
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["tokens"], at + 1);
}

TEST_F(GenerateProgram, APromptInPiecesIsThePrompt) {
  std::string text;  // more than a piece of text
  const Rng rng(1, "text");
  while (text.size() < (size_t{1} << 20) + 70000)
    text +=
        static_cast<char>('a' + rng.below(text.size(), 26)) + std::string(rng.below(text.size(), 9) == 0 ? "\n" : "");
  std::vector<int64_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  file("long.txt", text);
  write_npy(path("long.npy"), Tensor::of(ids));
  const Json piecewise = json_of({"--prompt-file", arg("long.txt"), "--max-tokens", "5", "--state-out", arg("a")});
  const Json whole = json_of({"--ids", arg("long.npy"), "--max-tokens", "5", "--state-out", arg("b")});
  EXPECT_EQ(piecewise["prompt_tokens"], text.size());
  EXPECT_EQ(piecewise["ids"], whole["ids"]);
  EXPECT_EQ(read_text(path("a")), read_text(path("b")));
}

// Talks ---------------------------------------------------------------------------------------------------------------

TEST_F(GenerateProgram, ATalkCarriesItsState) {
  const std::vector<Json> turns = lines_of(talk("Hello\nand then\n").out);
  ASSERT_EQ(turns.size(), 2u);
  EXPECT_EQ(turns[0]["ids"], json_of({"--prompt", "Hello\n", "--max-tokens", "6"})["ids"]);
  EXPECT_EQ(turns[1]["prompt_tokens"], 9);
  // The same as files do it.
  expect_done(base({"--prompt", "Hello\n", "--max-tokens", "6", "--state-out", arg("one")}));
  EXPECT_EQ(turns[1]["ids"], json_of({"--state-in", arg("one"), "--prompt", "and then\n", "--max-tokens", "6"})["ids"]);
  const std::vector<Json> framed = lines_of(talk("Hello\n", "--prefix '<' --suffix '>'").out);
  EXPECT_EQ(framed[0]["ids"], json_of({"--prompt", "<Hello>", "--max-tokens", "6"})["ids"]);
  EXPECT_EQ(lines_of(talk("//x\n").out)[0]["ids"], json_of({"--prompt", "/x\n", "--max-tokens", "6"})["ids"]);
}

TEST_F(GenerateProgram, AThousandTurnsAreTakenBackOneByOne) {
  std::string typed;
  constexpr int kTurns = 1000;
  const auto save = [&](const char* when, int turns) {
    if (turns % 100 == 1) typed += text("/save ", arg(text(when, turns)), "\n");
  };
  for (int i = 0; i < kTurns; ++i) {
    typed += text("turn ", i, "\n");
    save("forth", i + 1);
  }
  // After each step back the same line must give the same answer, and is taken back again.
  for (int i = kTurns - 1; i >= 0; --i) {
    typed += text("/undo\nturn ", i, "\n/undo\n");
    save("back", i);
  }
  typed += "/stats\n";
  const Outcome outcome = talk(typed, "--undo 1000");
  EXPECT_EQ(outcome.code, 0) << outcome.err.substr(0, 500);
  const std::vector<Json> turns = lines_of(outcome.out);
  ASSERT_EQ(turns.size(), 2u * kTurns);
  for (size_t i = 0; i < kTurns; ++i) ASSERT_EQ(turns[kTurns + i]["ids"], turns[kTurns - 1 - i]["ids"]) << i;
  for (int i = 1; i < kTurns; i += 100)
    EXPECT_EQ(read_text(path(text("forth", i))), read_text(path(text("back", i)))) << "the state after turn " << i;
  EXPECT_NE(outcome.err.find("tokens   0, 0 of them written"), std::string::npos);

  const Outcome capped = talk("a\nb\nc\n/undo 3\n/undo 2\n/undo\n", "--undo 2");
  EXPECT_EQ(capped.code, 1);
  EXPECT_NE(capped.err.find("error: cannot take back 3 turns: 2 are kept"), std::string::npos) << capped.err;
  EXPECT_NE(capped.err.find("error: cannot take back 1 turns: 0 are kept"), std::string::npos) << capped.err;
}

TEST_F(GenerateProgram, BranchesFilesAndSettings) {
  const std::vector<Json> turns =
      lines_of(talk("Hello\n/save " + arg("s") + "\n/fork b\nmore\n/switch b\nmore\n/switch main\nagain\n/load " +
                    arg("s") + "\nmore\n/reset\nHello\n/undo 2\nmore\n/switch b\n/undo\nmore\n")
                   .out);
  ASSERT_EQ(turns.size(), 8u);
  EXPECT_EQ(turns[1]["ids"], turns[2]["ids"]);  // the branch begins where main was
  EXPECT_NE(turns[1]["ids"], turns[3]["ids"]);
  EXPECT_EQ(turns[4]["ids"], turns[1]["ids"]);  // from the file
  EXPECT_EQ(turns[5]["ids"], turns[0]["ids"]);  // from nothing
  EXPECT_NE(turns[6]["ids"], turns[0]["ids"]);  // /reset was taken back
  EXPECT_EQ(turns[7]["ids"], turns[1]["ids"]);  // the branch kept its own past
  EXPECT_EQ(turns[1]["ids"], json_of({"--state-in", arg("s"), "--prompt", "more\n", "--max-tokens", "6"})["ids"]);

  const Outcome set = talk("/set temperature 0\n/set max-tokens 3\nHello\n/seed 4\n/reset\nHello\n");
  EXPECT_EQ(set.code, 0) << set.err;
  EXPECT_EQ(lines_of(set.out)[0]["tokens"], 3);
  EXPECT_EQ(lines_of(set.out)[0]["ids"], lines_of(set.out)[1]["ids"]);
  const Outcome wrong =
      talk("/nonsense\n/set temperature -1\n/set temprature 1\n/set top_p x\n/switch c\n/fork main\n" +
           std::string("/load ") + arg("text.txt") + "\n/save /no/such/place\n/seed x\nHello\n");
  EXPECT_EQ(wrong.code, 1);
  EXPECT_EQ(lines_of(wrong.out)[0]["ids"], turns[0]["ids"]) << "a wrong command changed something";
  size_t errors = 0;
  for (size_t at = 0; (at = wrong.err.find("error: ", at)) != std::string::npos; ++at) ++errors;
  EXPECT_EQ(errors, 9u) << wrong.err;
}

// Interrupts ----------------------------------------------------------------------------------------------------------

TEST_F(GenerateProgram, AnInterruptedRunGivesWhatThereIs) {
  Process process(scratch_.path(), {SSM_PROGRAM, "generate", "--model", arg("model"), "--prompt", "Hello", "--json",
                                    "--max-tokens", "1000000000", "--samples", "3", "--threads", "1"});
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  process.signal(SIGINT);
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.code, 130);
  const Json result = outcome.json();
  for (const Json& sample : result["samples"]) EXPECT_EQ(sample["finish_reason"], "interrupted");
}

TEST_F(GenerateProgram, AnInterruptWhileReadingEndsAtOnce) {
  std::string long_text(size_t{40} << 20, 'a');
  for (size_t i = 100; i < long_text.size(); i += 100) long_text[i] = '\n';
  file("long.txt", long_text);
  for (const Words& command : {Words{"generate", "--prompt-file"}, Words{"evaluate", "--json", "--data"}}) {
    Words words = {SSM_PROGRAM};
    words.insert(words.end(), command.begin(), command.end());
    words.insert(words.end(), {arg("long.txt"), "--model", arg("model"), "--threads", "1"});
    Process process(scratch_.path(), words);
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    process.signal(SIGINT);
    const Outcome outcome = process.wait();
    EXPECT_EQ(outcome.code, 130) << outcome.err;
    if (command[0] == "generate") continue;
    EXPECT_GT(outcome.json()["tokens"], 0);
    EXPECT_NEAR(outcome.json()["loss"], std::log(256), 3);
  }
}

TEST_F(GenerateProgram, EvaluateReadsFilesAsOneText) {
  const std::string text = read_text(path("text.txt"));
  file("a.txt", text.substr(0, 20));
  file("b.txt", text.substr(20));
  const auto loss = [&](const Words& files) {
    Words words = {"evaluate", "--model", arg("model"), "--json", "--data"};
    words.insert(words.end(), files.begin(), files.end());
    return expect_done(words).json();
  };
  const Json whole = loss({arg("text.txt")});
  EXPECT_EQ(loss({arg("a.txt"), arg("b.txt")})["loss"], whole["loss"]);
  const Outcome piped =
      shell("cat " + arg("text.txt") + " | " SSM_PROGRAM " evaluate --json --data - --model " + arg("model"));
  EXPECT_EQ(piped.json()["loss"], whole["loss"]);
  expect_error({"evaluate", "--model", arg("model"), "--data", arg("a.txt"), arg("none.txt")}, "none.txt");
  expect_usage({"evaluate", "--model", arg("model"), "--data", arg("a.txt"), "--context", "1"}, "--context is 1");
  const Json given =
      expect_done({"evaluate", "--model", arg("model"), "--json", "--tokenizer", "bytes", "--data", arg("text.txt")})
          .json();
  EXPECT_EQ(given["loss"], whole["loss"]);
}

}  // namespace
}  // namespace ssm

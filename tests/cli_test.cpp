// The program as its users run it: every command on a small model, and every kind of bad input, which must give exit 1
// (2 for a wrong command line), one line on stderr that begins with "error: ", and leave nothing behind.
// generate_test.cpp has more of `generate`.
#include "tests/program.h"

#include "core/rng.h"
#include "engine/sampler.h"

namespace ssm {
namespace {

// The command line ----------------------------------------------------------------------------------------------------

const Words kCommands = {"train", "generate", "evaluate", "logits", "gradients", "tokenize",
                         "info",  "convert",  "bench",    "lti",    "hippo"};

TEST_F(Program, EveryCommandHasHelpWithAnExample) {
  const Outcome all = expect_done({"--help"});
  for (const std::string& command : kCommands) {
    EXPECT_NE(all.out.find("\n  " + command + " "), std::string::npos) << command;
    const Outcome help = expect_done({command, "--help"});
    EXPECT_TRUE(help.err.empty());
    EXPECT_NE(help.out.find("\nExample: ssm " + command + " "), std::string::npos) << help.out;
    EXPECT_NE(help.out.find("  --threads N"), std::string::npos);
  }
  EXPECT_TRUE(expect_done({"--version"}).out.starts_with("ssm "));
}

TEST_F(Program, WrongCommandLinesAreUsageErrors) {
  expect_usage({}, "no command");
  expect_usage({"generat"}, "did you mean generate?");
  expect_usage({"generate", "--modle", "x"}, "did you mean --model?");
  expect_usage({"generate", "--prompt", "x"}, "needs --model");
  expect_usage({"train", "--data", "f", "--step", "1"}, "did you mean --steps?");
  expect_usage({"info"}, "needs MODEL");
  expect_usage({"info", "a", "b"}, "unexpected argument \"b\"");
  expect_usage({"generate", "--model", "--json"}, "--model needs a value");
  expect_usage({"generate", "--model", "a", "--model", "b"}, "given twice");
  expect_usage({"info", "a", "--device", "cpu", "--tf32"}, "--tf32 is for a GPU, --device is cpu");
  const Words generate = {"generate", "--model", arg("model"), "--prompt", "x"};
  const auto with = [&](const Words& more) {
    Words words = generate;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  expect_usage(with({"--max-tokens", "1.5"}), "--max-tokens is \"1.5\", expected an integer");
  expect_usage(with({"--max-tokens", "99999999999999999999"}), "expected an integer");
  expect_usage(with({"--max-tokens", "-1"}), "--max-tokens is -1, expected at least 0");
  expect_usage(with({"--temperature", "nan"}), "--temperature is \"nan\", expected a number");
  expect_usage(with({"--temperature=-1"}), "--temperature is -1, expected 0");
  expect_usage(with({"--top-p", "1.1"}), "--top-p is 1.1, expected 0 to 1");
  expect_usage(with({"--stop", ""}), "--stop is empty");
  expect_usage(with({"--prompt-file", "y"}), "more than one prompt");
  expect_usage(with({"--device", "tpu"}), "expected auto, cpu");
  expect_usage(with({"--dtype", "i8"}), "expected f32");
  expect_usage(with({"--threads", "-2"}), "--threads is -2");
  expect_usage(with({"--json=maybe"}), "expected true or false");
  expect_usage({"generate", "--model", arg("model")}, "no prompt");
  expect_usage({"evaluate", "--model", arg("model")}, "nothing to evaluate on");
  expect_usage({"evaluate", "--model", arg("model"), "--data", "x", "--stride", "4"}, "--stride is 4");
  expect_usage({"tokenize"}, "nothing to do");
  expect_usage({"logits", "--model", "a", "--ids", "b", "--out", "c", "--chunk", "0"}, "--chunk is 0");
}

// What commands do ----------------------------------------------------------------------------------------------------

TEST_F(Program, GenerateIsReproducibleAndCanBeSplit) {
  const Words base = {"generate", "--model", arg("model"), "--json", "--seed", "3", "--repetition-penalty", "1.1"};
  const auto generate = [&](const Words& more) {
    Words words = base;
    words.insert(words.end(), more.begin(), more.end());
    return expect_done(words).json();
  };
  const Json whole = generate({"--prompt", "Hello", "--max-tokens", "24"});
  EXPECT_EQ(whole["ids"].size(), 24u);
  EXPECT_EQ(whole["finish_reason"], "length");
  EXPECT_EQ(whole["prompt_tokens"], 5);
  EXPECT_EQ(whole["tokens"], 24);
  EXPECT_TRUE(whole["text"].is_string() && whole["seconds"].is_number() && whole["tokens_per_second"].is_number());
  EXPECT_EQ(whole["ids"], generate({"--prompt", "Hello", "--max-tokens", "24", "--threads", "1"})["ids"]);

  const Json first = generate({"--prompt", "Hello", "--max-tokens", "9", "--state-out", arg("state")});
  const Json second = generate({"--max-tokens", "15", "--state-in", arg("state"), "--ids-out", arg("written.npy")});
  Json joined = first["ids"];
  joined.insert(joined.end(), second["ids"].begin(), second["ids"].end());
  EXPECT_EQ(joined, whole["ids"]);
  const Tensor written = read_npy(path("written.npy"));
  EXPECT_EQ(Json(std::vector<int64_t>(written.data<int64_t>(), written.data<int64_t>() + 15)), second["ids"]);

  write_npy(path("hello.npy"), Tensor::of(std::vector<int64_t>{'H', 'e', 'l', 'l', 'o'}));
  EXPECT_EQ(whole["ids"], generate({"--ids", arg("hello.npy"), "--max-tokens", "24"})["ids"]);
  file("hello.txt", "Hello");
  EXPECT_EQ(whole["ids"], generate({"--prompt-file", arg("hello.txt"), "--max-tokens", "24"})["ids"]);
  const Json none = generate({"--prompt", "Hello", "--max-tokens", "0"});
  EXPECT_EQ(none["text"], "");
}

TEST_F(Program, GenerateStreamsStopsAndGivesLogprobs) {
  const Words base = {"generate", "--model", arg("model"), "--prompt", "Hello", "--max-tokens", "40"};
  const auto words = [&](const Words& more) {
    Words all = base;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  const Json whole = expect_done(words({"--json", "--logprobs"})).json();
  const std::string text = whole["text"];
  EXPECT_EQ(expect_done(words({})).out, text);  // the stream is the text, to the byte
  ASSERT_EQ(whole["logprobs"].size(), 40u);
  for (const double logprob : whole["logprobs"]) EXPECT_LT(logprob, 0);
  const Outcome lines = expect_done(words({"--logprobs"}));
  EXPECT_EQ(std::count(lines.out.begin(), lines.out.end(), '\n'), 40);

  // The two bytes after the fifth token, unless they came before.
  const std::vector<int64_t> ids = whole["ids"];
  std::string bytes;
  for (const int64_t id : ids) bytes += static_cast<char>(id);
  size_t at = 5;
  while (bytes.find(bytes.substr(at, 2)) < at || static_cast<unsigned char>(bytes[at]) >= 0x80 ||
         static_cast<unsigned char>(bytes[at + 1]) >= 0x80 || bytes[at] == 0 || bytes[at + 1] == 0)
    ASSERT_LT(++at, 38u);
  const Json stopped = expect_done(words({"--json", "--stop", "no such text", bytes.substr(at, 2)})).json();
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["tokens"], at + 2);
  EXPECT_TRUE(text.starts_with(std::string(stopped["text"])));
  EXPECT_LT(std::string(stopped["text"]).size(), text.size());
}

TEST_F(Program, AnyBytesAreAPrompt) {
  file("bytes.txt", std::string("\xff\xfe\x00half \xe2\x82", 10));
  const Outcome outcome = expect_done(
      {"generate", "--model", arg("model"), "--prompt-file", arg("bytes.txt"), "--max-tokens", "5", "--json"});
  EXPECT_EQ(outcome.json()["prompt_tokens"], 10);
  EXPECT_GT(expect_done({"evaluate", "--model", arg("model"), "--data", arg("bytes.txt"), "--json"}).json()["loss"], 0);
}

TEST_F(Program, LogitsDoNotDependOnChunksOrBatches) {
  const auto logits = [&](const Words& more) {
    Words words = {"logits", "--model", arg("model"), "--out", arg("logits.npy")};
    words.insert(words.end(), more.begin(), more.end());
    expect_done(words);
    return read_npy(path("logits.npy"));
  };
  const Tensor whole = logits({"--ids", arg("ids.npy")});
  EXPECT_EQ(whole.shape(), (Shape{12, 256}));
  EXPECT_EQ(whole.dtype(), DType::f32);
  for (const Words& how : {Words{"--chunk", "1"}, Words{"--chunk", "5"}, Words{"--device", "ref", "--dtype", "f64"}}) {
    Words words = {"--ids", arg("ids.npy")};
    words.insert(words.end(), how.begin(), how.end());
    const Tensor other = logits(words);
    for (int64_t i = 0; i < whole.count(); ++i)
      ASSERT_NEAR(whole.data<float>()[i], other.data<float>()[i], 1e-5) << testing::PrintToString(how);
  }
  const Tensor batch = logits({"--ids", arg("batch.npy")});
  EXPECT_EQ(batch.shape(), (Shape{2, 6, 256}));
  for (int64_t i = 0; i < 6 * 256; ++i) ASSERT_NEAR(whole.data<float>()[i], batch.data<float>()[i], 1e-5);
}

TEST_F(Program, GradientsHaveTheParametersNamesAndShapes) {
  const Json report = expect_done({"gradients", "--model", arg("model"), "--ids", arg("batch.npy"), "--out",
                                   arg("gradients.safetensors"), "--json"})
                          .json();
  const TensorMap gradients = read_safetensors(path("gradients.safetensors"));
  const TensorMap values = read_safetensors(path("model") / "model.safetensors");
  ASSERT_EQ(gradients.size(), values.size());
  double squares = 0;
  for (const auto& [name, value] : values) {
    ASSERT_EQ(gradients.at(name).shape(), value.shape()) << name;
    for (const double g : gradients.at(name).to(DType::f64).span<double>()) squares += g * g;
  }
  EXPECT_NEAR(report["grad_norm"], std::sqrt(squares), 1e-6 * std::sqrt(squares));
  EXPECT_NEAR(report["loss"], std::log(256), 0.5);  // random weights know nothing
}

TEST_F(Program, EvaluateAgreesWithItselfInEveryUnit) {
  const Json whole = expect_done({"evaluate", "--model", arg("model"), "--data", arg("text.txt"), "--json"}).json();
  EXPECT_EQ(whole["tokens"], 44);
  EXPECT_EQ(whole["bytes"], 44);
  EXPECT_NEAR(whole["perplexity"], std::exp(double(whole["loss"])), 1e-9 * double(whole["perplexity"]));
  EXPECT_NEAR(whole["bits_per_byte"], double(whole["loss"]) / std::log(2.0), 1e-9);
  const Outcome text = expect_done({"evaluate", "--model", arg("model"), "--data", arg("text.txt")});
  EXPECT_NE(text.out.find("perplexity"), std::string::npos);
  // The same text as a token file.
  expect_done({"tokenize", "--file", arg("text.txt"), "--out", arg("text.tokens")});
  EXPECT_EQ(expect_done({"evaluate", "--model", arg("model"), "--data", arg("text.tokens"), "--json"}).json()["loss"],
            whole["loss"]);
  const Json windows = expect_done({"evaluate", "--model", arg("model"), "--data", arg("text.txt"), "--json",
                                    "--context", "8", "--stride", "4"})
                           .json();
  EXPECT_EQ(windows["tokens"], 44);
  EXPECT_NE(windows["loss"], whole["loss"]);
}

TEST_F(Program, TokenizeGoesThereAndBack) {
  EXPECT_EQ(expect_done({"tokenize", "--text", "Hi\n"}).out, "72 105 10\n");
  expect_done({"tokenize", "--file", arg("text.txt"), "--out", arg("t.npy")});
  EXPECT_EQ(expect_done({"tokenize", "--decode", arg("t.npy")}).out, read_text(path("text.txt")));
  EXPECT_EQ(expect_done({"tokenize", "--text", "Hi", "--json"}).json(),
            Json::parse(R"({"tokens": 2, "ids": [72, 105], "pieces": ["H", "i"]})"));
}

TEST_F(Program, InfoSaysWhatTheModelIs) {
  const Json info = expect_done({"info", arg("model"), "--json", "--tensors"}).json();
  const auto model = Model::open(path("model"), {});
  EXPECT_EQ(info["parameters"], model->params().count());
  EXPECT_EQ(info["bytes"], 4 * model->params().count());
  EXPECT_EQ(info["state_bytes"], bytes_of(model->lm().state_spec()));
  EXPECT_EQ(info["tensor_list"].size(), model->params().all().size());
  EXPECT_EQ(info["config"]["d_model"], 16);
  EXPECT_EQ(info["tokenizer"], "bytes");
  EXPECT_NE(expect_done({"info", arg("model")}).out.find("parameters"), std::string::npos);
}

TEST_F(Program, ConvertKeepsTheModel) {
  const Words greedy = {"--prompt", "Hello", "--max-tokens", "10", "--temperature", "0", "--json", "--model"};
  const auto ids = [&](const std::string& model) {
    Words words = {"generate"};
    words.insert(words.end(), greedy.begin(), greedy.end());
    words.push_back(model);
    return expect_done(words).json()["ids"];
  };
  file("model/tokenizer.json", "{}");  // is carried along, whatever it says
  expect_done({"convert", arg("model"), "--out", arg("same")});
  EXPECT_EQ(read_text(path("same") / "tokenizer.json"), "{}");
  EXPECT_EQ(read_text(path("same") / "model.safetensors"), read_text(path("model") / "model.safetensors"));
  fs::remove(path("model") / "tokenizer.json");
  fs::remove(path("same") / "tokenizer.json");
  EXPECT_EQ(ids(arg("same")), ids(arg("model")));
  expect_done({"convert", arg("model"), "--out", arg("half"), "--dtype", "bf16"});
  const Json info = expect_done({"info", arg("half"), "--json"}).json();
  EXPECT_GT(info["dtypes"]["bf16"]["tensors"], 0);
  EXPECT_GT(info["dtypes"]["f32"]["tensors"], 0);  // A_log and others stay f32
  EXPECT_EQ(ids(arg("half")).size(), 10u);
  directory("beside");
  expect_done({"convert", arg("model"), "--out", arg("beside/small.safetensors")});
  EXPECT_EQ(ids(arg("beside/small.safetensors")), ids(arg("model")));
  expect_error({"convert", arg("model"), "--out", arg("half")}, "exists; expected a new directory");
}

TEST_F(Program, ConvertWritesEitherNaming) {
  const std::string original = read_text(path("model") / "model.safetensors");
  expect_done({"convert", arg("model"), "--out", arg("hf"), "--naming", "huggingface", "--max-shard-size", "10KB"});
  EXPECT_TRUE(fs::exists(path("hf") / "model.safetensors.index.json"));
  const Json info = expect_done({"info", arg("hf"), "--json", "--tensors"}).json();
  EXPECT_EQ(info["kind"], "huggingface (mamba)");
  EXPECT_EQ(info["tensor_list"][0]["name"], "backbone.embeddings.weight");
  EXPECT_EQ(expect_done({"info", arg("model"), "--json"}).json()["kind"], "state-spaces (Mamba1)");
  expect_done({"convert", arg("hf"), "--out", arg("back"), "--naming", "state-spaces"});
  EXPECT_EQ(read_text(path("back") / "model.safetensors"), original);
  expect_done({"convert", arg("hf"), "--out", arg("kept")});  // auto: as it was
  EXPECT_EQ(expect_done({"info", arg("kept"), "--json"}).json()["kind"], "huggingface (mamba)");
  file("hf/generation_config.json", R"({"eos_token_id": [7, 8]})");
  EXPECT_EQ(expect_done({"info", arg("hf"), "--json"}).json()["config"]["eos_token_id"], Json::parse("[7, 8]"));
}

TEST_F(Program, ConvertWritesThePresetsInitialWeights) {
  expect_done({"convert", "--preset", "bytes-mamba2-1m", "--dtype", "f16", "--seed", "3", "--out", arg("new")});
  const Json info = expect_done({"info", arg("new"), "--json"}).json();
  EXPECT_EQ(info["kind"], "state-spaces (Mamba2)");
  EXPECT_GT(info["dtypes"]["f16"]["tensors"], 0);
  const Words generate = {"generate", "--model", arg("new"), "--prompt", "x", "--max-tokens", "2", "--json"};
  EXPECT_EQ(expect_done(generate).json()["ids"].size(), 2u);
  for (const auto& [words, part] : std::vector<std::pair<Words, std::string>>{
           {{"convert", "--out", arg("no")}, "one of MODEL and --preset"},
           {{"convert", arg("model"), "--preset", "bytes-1m", "--out", arg("no")}, "one of MODEL and --preset"},
           {{"convert", arg("model"), "--out", arg("no"), "--naming", "gguf"}, "expected auto, state-spaces"},
           {{"convert", arg("model"), "--out", arg("no"), "--max-shard-size", "5XB"}, "--max-shard-size is \"5XB\""},
           {{"convert", arg("model"), "--out", arg("no"), "--max-shard-size", "99999999999GB"}, "--max-shard-size"}})
    expect_error(words, part, 2);
  expect_error({"convert", "--preset", "mamba-131m", "--out", arg("no")}, "did you mean mamba-130m?");
  EXPECT_FALSE(fs::exists(path("no")));
}

// Bad input -----------------------------------------------------------------------------------------------------------

TEST_F(Program, DamagedModelsAreOneLineErrors) {
  const auto info = [&](const std::string& model, std::string_view part) {
    expect_error({"generate", "--model", model, "--prompt", "x", "--state-out", arg("never")}, part);
  };
  info(arg("no-such"), "no such model");
  info(arg("no\nsuch\x1b[31m\xff"), "no\\nsuch\\x1b[31m\\xff");
  info(arg("text.txt"), "text.txt");
  const std::string whole = read_text(path("model") / "model.safetensors");
  for (const size_t bytes : {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    const std::string broken = model_with_config("broken", read_text(path("model") / "config.json"));
    file("broken/model.safetensors", whole.substr(0, bytes));
    info(broken, "broken/model.safetensors");
  }
  info(changed_model("shape", [](TensorMap& t) { t["backbone.norm_f.weight"] = Tensor::zeros({17}, DType::f32); }),
       "backbone.norm_f.weight is (17), config says (16)");
  info(changed_model("missing", [](TensorMap& t) { t.erase("backbone.layers.1.mixer.D"); }),
       "no tensor backbone.layers.1.mixer.D");
  info(changed_model("extra", [](TensorMap& t) { t["backbone.more"] = Tensor::zeros({1}, DType::f32); }),
       "backbone.more");
  info(model_with_config("key", R"({"d_model": 16, "n_layer": 2, "vocab_size": 256, "d_modell": 3})"),
       "unknown key \"d_modell\"; did you mean \"d_model\"?");
  info(model_with_config("huge", R"({"d_model": 123456789012, "n_layer": 2, "vocab_size": 256})"),
       "d_model is 123456789012");
  info(model_with_config("large", R"({"d_model": 1048576, "n_layer": 65536, "vocab_size": 256})"), "large");
  info(model_with_config("zero", R"({"d_model": 0, "n_layer": 2, "vocab_size": 256})"), "d_model is 0");
  info(model_with_config("type", R"({"d_model": "16", "n_layer": 2, "vocab_size": 256})"), "expected an integer");
  info(model_with_config("json", "{\"d_model\": \x01"), "config.json is not JSON");
  file("key/model.safetensors", "");
  fs::remove(path("key") / "config.json");
  info(arg("key"), "no config.json");
}

TEST_F(Program, DamagedArraysAreOneLineErrors) {
  const auto logits = [&](const std::string& ids, std::string_view part) {
    expect_error({"logits", "--model", arg("model"), "--ids", ids, "--out", arg("never.npy")}, part);
  };
  logits(arg("no-such.npy"), "no-such.npy");
  logits(file("empty.npy", ""), "is empty");
  logits(file("short.npy", read_text(path("ids.npy")).substr(0, 150)), "truncated or damaged");
  logits(arg("text.txt"), "text.txt");
  write_npy(path("floats.npy"), Tensor::zeros({4}, DType::f32));
  logits(arg("floats.npy"), "holds f32, expected integers");
  write_npy(path("outside.npy"), Tensor::of(std::vector<int64_t>{1, 256}));
  logits(arg("outside.npy"), "is 256, expected 0 to 255");
  write_npy(path("negative.npy"), Tensor::of(std::vector<int64_t>{-1}));
  logits(arg("negative.npy"), "is -1, expected 0 to 255");
  write_npy(path("deep.npy"), Tensor::zeros({2, 2, 2}, DType::i64));
  logits(arg("deep.npy"), "expected (t) or (s, t)");
  write_npy(path("none.npy"), Tensor::of(std::vector<int64_t>{}));
  logits(arg("none.npy"), "expected at least one token");
  write_npy(path("one.npy"), Tensor::zeros({2, 1}, DType::i64));
  expect_error({"gradients", "--model", arg("model"), "--ids", arg("one.npy"), "--out", arg("never")},
               "at least one input and its target");
  expect_error({"generate", "--model", arg("model"), "--ids", arg("batch.npy")}, "expected one sequence");
  expect_error({"evaluate", "--model", arg("model"), "--ids", arg("none.npy")}, "expected at least 2");
}

TEST_F(Program, TextThatIsNotThereIsAnError) {
  const Words base = {"generate", "--model", arg("model")};
  file("empty.txt", "");
  expect_error({"generate", "--model", arg("model"), "--prompt", ""}, "the prompt is empty");
  expect_error({"generate", "--model", arg("model"), "--prompt-file", arg("empty.txt")}, "the prompt is empty");
  expect_error({"generate", "--model", arg("model"), "--prompt-file", "-"}, "the prompt is empty");
  expect_error({"generate", "--model", arg("model"), "--prompt-file", arg("none.txt")}, "none.txt");
  expect_error({"generate", "--model", arg("model"), "--prompt-file", arg("model")}, "irectory");
  expect_error({"evaluate", "--model", arg("model"), "--data", arg("empty.txt")}, "empty.txt is empty");
  expect_error({"evaluate", "--model", arg("model"), "--data", arg("none.txt")}, "none.txt");
  expect_error({"tokenize", "--file", arg("empty.txt")}, "is empty");
  expect_error({"tokenize", "--text", "x", "--tokenizer", arg("none.json")}, "unknown tokenizer");
  expect_error({"generate", "--model", arg("model"), "--state-in", arg("text.txt")}, "text.txt");
}

TEST_F(Program, WhatCannotBeWrittenIsAnErrorAndLeavesNothing) {
  const std::string below_a_file = arg("text.txt") + "/out.npy";
  expect_error({"logits", "--model", arg("model"), "--ids", arg("ids.npy"), "--out", below_a_file}, "Not a directory");
  expect_error({"gradients", "--model", arg("model"), "--ids", arg("batch.npy"), "--out", below_a_file},
               "cannot write");
  expect_error({"generate", "--model", arg("model"), "--prompt", "x", "--state-out", below_a_file}, "cannot write");
  expect_error({"generate", "--model", arg("model"), "--prompt", "x", "--ids-out", arg("none/ids.npy")},
               "cannot write");
  expect_error({"convert", arg("model"), "--out", arg("text.txt") + "/model"}, "cannot create directory");
  expect_error({"tokenize", "--text", "x", "--out", below_a_file}, "cannot write");
  expect_error({"logits", "--model", arg("model"), "--ids", arg("ids.npy"), "--out", "/dev/null"}, "a device");
  expect_error({"logits", "--model", arg("model"), "--ids", arg("ids.npy"), "--out", arg("model")}, "a directory");

  // A full disk: no more than 2 KiB can be written to any file.
  const std::string limited = "ulimit -f 4; exec " SSM_PROGRAM " ";
  const std::set<std::string> before = files();
  for (const std::string& command :
       {"logits --model " + arg("model") + " --ids " + arg("ids.npy") + " --out " + arg("never.npy"),
        "generate --model " + arg("model") + " --prompt x --max-tokens 0 --state-out " + arg("never"),
        "gradients --model " + arg("model") + " --ids " + arg("batch.npy") + " --out " + arg("never"),
        "convert " + arg("model") + " --out " + arg("never")}) {
    EXPECT_TRUE(is_one_error(shell(limited + command), 1, "File too large")) << command;
    EXPECT_EQ(files(), before) << command;
  }
  EXPECT_TRUE(is_one_error(shell("exec " SSM_PROGRAM " info " + arg("model") + " > /dev/full"), 1,
                           "cannot write standard output: No space left on device"));
}

// Endings -------------------------------------------------------------------------------------------------------------

TEST_F(Program, AnInterruptEndsWithWhatThereIs) {
  Process process(scratch_.path(),
                  {SSM_PROGRAM, "generate", "--model", arg("model"), "--prompt", "Hello", "--max-tokens", "100000000",
                   "--logprobs", "--state-out", arg("state"), "--ids-out", arg("written.npy"), "--threads", "1"});
  for (int i = 0; process.out().size() < 200 && i < 60000; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  process.signal(SIGINT);
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.code, 130);
  const int64_t written = read_npy(path("written.npy")).count();
  EXPECT_EQ(written, std::count(outcome.out.begin(), outcome.out.end(), '\n'));
  // One run of as many tokens and one more gives what the interrupted one goes on with.
  const Json more =
      expect_done({"generate", "--model", arg("model"), "--state-in", arg("state"), "--max-tokens", "1", "--json"})
          .json();
  const Json whole = expect_done({"generate", "--model", arg("model"), "--prompt", "Hello", "--max-tokens",
                                  std::to_string(written + 1), "--json"})
                         .json();
  EXPECT_EQ(more["ids"][0], whole["ids"].back());
}

TEST_F(Program, AClosedPipeEndsQuietly) {
  const Outcome outcome = shell("{ " SSM_PROGRAM " generate --model " + arg("model") +
                                " --prompt Hello --max-tokens 100000000 --threads 1; echo $? >&2; } | head -c 20");
  EXPECT_EQ(outcome.err, "141\n");
}

}  // namespace
}  // namespace ssm

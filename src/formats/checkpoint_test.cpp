// Checkpoints: every layout of a published model is found, what is missing is named, no path leaves the directory.
#include "formats/checkpoint.h"

#include <gtest/gtest.h>

#include "formats/test_files.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

Tensor vector_of(float value) { return Tensor::of(std::vector<float>{value}); }
float only(const TensorMap& tensors, const std::string& name) { return tensors.at(name).item<float>(); }

TEST(Checkpoint, WrittenAndReadBack) {
  const ScratchDirectory scratch;
  write_directory(scratch.path() / "model", [](const Path& directory) {
    write_checkpoint(directory, "{\"d_model\": 1}", {{"w", vector_of(3)}, {"v", vector_of(4)}});
  });
  const Checkpoint found = open_checkpoint(scratch.path() / "model");
  EXPECT_EQ(found.config, "{\"d_model\": 1}");
  EXPECT_EQ(found.config_path, scratch.path() / "model" / "config.json");
  EXPECT_EQ(found.weights, scratch.path() / "model" / "model.safetensors");
  EXPECT_EQ(found.tensors.size(), 2u);
  EXPECT_EQ(only(found.tensors, "v"), 4);
  const Checkpoint same = open_checkpoint(found.weights);
  EXPECT_EQ(same.config, found.config);
  EXPECT_EQ(only(same.tensors, "w"), 3);
}

TEST(Checkpoint, PrefersSafetensorsToPickles) {
  const ScratchDirectory scratch;
  scratch.file("config.json", "{}");
  fs::copy_file(testdata("dtypes.bin"), scratch.path() / "pytorch_model.bin");
  EXPECT_EQ(open_checkpoint(scratch.path()).weights.filename(), "pytorch_model.bin");
  EXPECT_EQ(only(open_checkpoint(scratch.path() / "pytorch_model.bin").tensors, "scalar"), 6);
  write_safetensors(scratch.path() / "model.safetensors", {{"w", vector_of(1)}});
  EXPECT_EQ(open_checkpoint(scratch.path()).weights.filename(), "model.safetensors");
}

TEST(Checkpoint, Shards) {
  const ScratchDirectory scratch;
  scratch.file("config.json", "{}");
  write_safetensors(scratch.path() / "model-1.safetensors", {{"a", vector_of(1)}, {"c", vector_of(7)}});
  write_safetensors(scratch.path() / "model-2.safetensors", {{"b", vector_of(2)}, {"c", vector_of(3)}});
  scratch.file("model.safetensors.index.json",
               R"({"metadata": {"total_size": 12}, "weight_map": {"a": "model-1.safetensors",
                   "b": "model-2.safetensors", "c": "model-2.safetensors"}})");
  const Checkpoint found = open_checkpoint(scratch.path());
  EXPECT_EQ(found.weights.filename(), "model.safetensors.index.json");
  EXPECT_EQ(found.tensors.size(), 3u);
  EXPECT_EQ(only(found.tensors, "a") + only(found.tensors, "b"), 3);
  EXPECT_EQ(only(found.tensors, "c"), 3);

  const ScratchDirectory pickles;
  pickles.file("config.json", "{}");
  fs::copy_file(testdata("dtypes.bin"), pickles.path() / "pytorch_model-00001-of-00001.bin");
  pickles.file("pytorch_model.bin.index.json", R"({"weight_map": {"scalar": "pytorch_model-00001-of-00001.bin"}})");
  EXPECT_EQ(open_checkpoint(pickles.path()).tensors.size(), 1u);
  EXPECT_EQ(only(open_checkpoint(pickles.path() / "pytorch_model.bin.index.json").tensors, "scalar"), 6);
}

TEST(Checkpoint, ConsolidatedWeightsAreReadWhereThereAreNoOthers) {
  const ScratchDirectory scratch;
  scratch.file("config.json", "{}");
  write_safetensors(scratch.path() / "consolidated.safetensors", {{"w", vector_of(1)}});
  EXPECT_EQ(open_checkpoint(scratch.path()).weights.filename(), "consolidated.safetensors");
  write_safetensors(scratch.path() / "model.safetensors", {{"w", vector_of(2)}});
  EXPECT_EQ(open_checkpoint(scratch.path()).weights.filename(), "model.safetensors");
}

TEST(Checkpoint, WritesShardsOfAtMostTheSizeAskedFor) {
  std::vector<TensorSource> sources;
  for (const auto& [name, count] : {std::pair{"a", 3}, {"b", 3}, {"c", 9}, {"d", 1}, {"e", 1}, {"f", 3}})
    sources.push_back({name, DType::f32, Shape{count}, [count = count] {
                         return Tensor::of(std::vector<float>(static_cast<size_t>(count), static_cast<float>(count)));
                       }});
  const ScratchDirectory scratch;
  write_checkpoint(scratch.path(), "{}", sources, 24);  // bytes: a and b; c, too large for any; d, e; f
  const Checkpoint found = open_checkpoint(scratch.path());
  EXPECT_EQ(found.weights.filename(), "model.safetensors.index.json");
  for (const TensorSource& source : sources)
    EXPECT_EQ(found.tensors.at(source.name).data<float>()[0], static_cast<float>(source.shape[0])) << source.name;
  const auto names_in = [&](const char* shard) {
    std::string names;
    for (const auto& [name, tensor] : read_weights(scratch.path() / shard)) names += name;
    return names;
  };
  EXPECT_EQ(names_in("model-00001-of-00003.safetensors"), "ab");
  EXPECT_EQ(names_in("model-00002-of-00003.safetensors"), "c");
  EXPECT_EQ(names_in("model-00003-of-00003.safetensors"), "def");
  const ScratchDirectory whole;
  write_checkpoint(whole.path(), "{}", sources, 80);
  EXPECT_EQ(open_checkpoint(whole.path()).weights.filename(), "model.safetensors");
}

TEST(Checkpoint, BadIndexesAreErrors) {
  const ScratchDirectory scratch;
  write_safetensors(scratch.path() / "one.safetensors", {{"a", vector_of(1)}});
  const Path index = scratch.path() / "model.safetensors.index.json";
  const auto refused = [&](std::string_view json, std::string_view part) {
    SCOPED_TRACE(json);
    scratch.file("model.safetensors.index.json", json);
    EXPECT_TRUE(fails_with(part, [&] { read_weights(index); }));
  };
  refused("", "is not valid JSON");
  refused("[]", "has no weight_map");
  refused(R"({"weight_map": []})", "has no weight_map");
  refused(R"({"weight_map": {}})", "weight_map is empty");
  refused(R"({"weight_map": {"a": 1}})", "the file of tensor a is no string");
  refused(R"({"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}})", "\"a\" appears twice");
  refused(R"({"weight_map": {"a": "two.safetensors"}})", "names the shard two.safetensors, which is not beside it");
  refused(R"({"weight_map": {"b": "one.safetensors"}})", "says that tensor b is in one.safetensors, where it is not");
  refused(R"({"weight_map": {"a": "model.safetensors.index.json"}})", "expected the name of a weights file");
  for (const char* outside : {"", ".", "..", "../one.safetensors", "/etc/passwd", "x/../one.safetensors",
                              "..\\\\one.safetensors", "one.safetensors\\u0000"})
    refused(text(R"({"weight_map": {"a": ")", outside, "\"}}"), "expected the name of a weights file in the same");
  refused("{\"metadata\":" + std::string(50000, '[') + "}", "nested more than 8 levels deep");
}

TEST(Checkpoint, MissingPartsAreNamed) {
  const ScratchDirectory scratch;
  const auto refused = [](const Path& model, std::string_view part) {
    EXPECT_TRUE(fails_with(part, [&] { open_checkpoint(model); }));
  };
  refused(scratch.path() / "no", "no: no such model; expected a directory or a weights file");
  refused("", "no such model");
  refused(scratch.path(), "has no config.json in it");
  refused(scratch.file("w.safetensors", "x"), "has no config.json beside it");
  const Path gguf = scratch.file("w.gguf", "GGUF");
  refused(gguf, "GGUF files cannot be read yet; use the model's model.safetensors or pytorch_model.bin");
  scratch.file("config.json", "{}");
  refused(gguf, "GGUF files cannot be read yet");
  refused(scratch.path(),
          "has no weights; looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
          "pytorch_model.bin.index.json, consolidated.safetensors");
  refused(scratch.file("w.onnx", "x"), "unknown kind of weights file \".onnx\"");
}

}  // namespace
}  // namespace ssm

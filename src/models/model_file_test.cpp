// Models on disk in all their layouts, and what is said when config and weights do not fit together.
#include "models/model_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "formats/test_files.h"
#include "models/model.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

Path golden(std::string_view name) { return Path(SSM_SOURCE_ROOT) / "tests" / "golden_hf" / name; }

// A checkpoint whose tensors, by the file's names, were changed.
Path changed(const ScratchDirectory& scratch, std::string_view name, const std::string& config,
             const std::function<void(TensorMap&)>& change) {
  const ModelFile file = ModelFile::open(golden(name));
  TensorMap tensors;
  for (const auto& [ours, tensor] : file.tensors) tensors[file.published.at(ours)] = tensor;
  change(tensors);
  fs::remove_all(scratch.path() / "changed");
  fs::create_directory(scratch.path() / "changed");
  write_checkpoint(scratch.path() / "changed", config.empty() ? file.config_json : config,
                   NamedTensors(tensors.begin(), tensors.end()));
  return scratch.path() / "changed";
}

std::string with(std::string_view name, const std::string& from, const std::string& to) {
  std::string json = read_text(golden(name) / "config.json");
  const size_t at = json.find(from);
  EXPECT_NE(at, json.npos) << from;
  return json.replace(at, from.size(), to);
}

testing::AssertionResult refused(const Path& model, std::string_view part) {
  return fails_with(part, [&] { ModelFile::open(model); });
}

TEST(ModelFile, RepositoriesInACacheAreTheSnapshotTheyName) {
  const ScratchDirectory scratch;
  const Path repository = scratch.path() / "models--someone--mamba-hf", snapshots = repository / "snapshots";
  const std::string hash = "0123456789abcdef0123456789abcdef01234567";
  fs::create_directories(snapshots / hash);
  fs::create_directories(repository / "blobs");
  fs::create_directories(repository / "refs");
  size_t blob = 0;
  for (const auto& entry : fs::directory_iterator(golden("mamba_untied"))) {  // sharded
    const std::string name = std::to_string(blob++);
    fs::copy_file(entry.path(), repository / "blobs" / name);
    fs::create_symlink(Path("../../blobs") / name, snapshots / hash / entry.path().filename());
  }
  EXPECT_TRUE(refused(repository, "without refs/main"));
  write_file(repository / "refs" / "main", hash);
  const ModelFile whole = ModelFile::open(repository), snapshot = ModelFile::open(snapshots / hash);
  EXPECT_EQ(whole.weights, snapshot.weights);
  EXPECT_EQ(whole.tensors.size(), ModelFile::open(golden("mamba_untied")).tensors.size());
  EXPECT_EQ(Model::open(repository, {})->params().count(), Model::open(golden("mamba_untied"), {})->params().count());
  for (const char* elsewhere : {"../../etc", "..", "", "fedcba"}) {
    write_file(repository / "refs" / "main", elsewhere);
    EXPECT_TRUE(refused(repository, "names no snapshot in"));
  }
}

TEST(ModelFile, NamesOfAnySpelling) {
  const ScratchDirectory scratch;
  const ModelFile right = ModelFile::open(golden("mamba"));
  const auto renamed = [&](const std::function<std::string(std::string)>& rename) {
    return changed(scratch, "mamba", "", [&](TensorMap& tensors) {
      TensorMap result;
      for (const auto& [name, tensor] : tensors) result[rename(name)] = tensor;
      tensors = result;
    });
  };
  const std::vector<std::function<std::string(std::string)>> spellings = {
      [](const std::string& name) { return "model." + name; },
      [](const std::string& name) { return name.substr(std::string("backbone.").size()); },
      [](const std::string& name) {
        return name == "backbone.embeddings.weight" ? std::string("backbone.embedding.weight") : name;
      }};
  for (const auto& spelling : spellings) {
    const ModelFile found = ModelFile::open(renamed(spelling));
    EXPECT_EQ(found.tensors.size(), right.tensors.size());
    EXPECT_TRUE(found.tensors.contains("backbone.embedding.weight"));
  }
  EXPECT_TRUE(refused(renamed([](const std::string& name) {
                        return name == "backbone.norm_f.weight" ? std::string("backbone.norm.weight") : name;
                      }),
                      "has no tensor backbone.norm_f.weight (20), which config.json asks for; the nearest it has is "
                      "backbone.norm.weight"));
}

TEST(ModelFile, TheHeadIsWhatConfigAndWeightsSay) {
  const ScratchDirectory scratch;
  const auto embedding_of = [](const TensorMap& tensors) { return tensors.at("backbone.embeddings.weight"); };
  // Tied, and there a second time: as often published.
  const ModelFile twice = ModelFile::open(changed(
      scratch, "mamba", "", [&](TensorMap& tensors) { tensors["lm_head.weight"] = embedding_of(tensors).clone(); }));
  EXPECT_TRUE(twice.config.tie_embeddings);
  EXPECT_FALSE(twice.tensors.contains("lm_head.weight"));
  // Tied, says the config, and the weights hold two tables: transformers does not tie them.
  const ModelFile two = ModelFile::open(changed(scratch, "mamba", "", [&](TensorMap& tensors) {
    tensors["lm_head.weight"] = Tensor::zeros(embedding_of(tensors).shape(), DType::f32);
  }));
  EXPECT_FALSE(two.config.tie_embeddings);
  EXPECT_TRUE(two.tensors.contains("lm_head.weight"));
  // Tied, and stored under the head's name alone.
  const ModelFile head = ModelFile::open(changed(scratch, "mamba", "", [&](TensorMap& tensors) {
    tensors["lm_head.weight"] = embedding_of(tensors);
    tensors.erase("backbone.embeddings.weight");
  }));
  EXPECT_TRUE(head.tensors.contains("backbone.embedding.weight"));
  EXPECT_NO_THROW(Model::open(scratch.path() / "changed", {}));
  // Not tied, and not there.
  EXPECT_TRUE(
      refused(changed(scratch, "mamba_untied", "", [&](TensorMap& tensors) { tensors.erase("lm_head.weight"); }),
              "has no tensor lm_head.weight (61, 18)"));
  // state-spaces ties what says so: two tables contradict it.
  const ModelFile ours = ModelFile::open(golden("mamba"));
  EXPECT_TRUE(refused(changed(scratch, "mamba", ours.config.json(),
                              [&](TensorMap& tensors) {
                                tensors["lm_head.weight"] = Tensor::zeros(embedding_of(tensors).shape(), DType::f32);
                              }),
                      "lm_head.weight differs from backbone.embeddings.weight, yet tie_embeddings"));
}

TEST(ModelFile, DisagreementsNameBothSides) {
  const ScratchDirectory scratch;
  const auto nothing = [](TensorMap&) {};
  EXPECT_TRUE(
      refused(changed(scratch, "mamba", with("mamba", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"), nothing),
              "it holds 2 layers, config.json says 3"));
  EXPECT_TRUE(refused(
      changed(scratch, "mamba", with("mamba", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 65000"), nothing),
      "config.json says 65000"));
  EXPECT_TRUE(
      refused(changed(scratch, "mamba", with("mamba", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"), nothing),
              "belongs to no part of the model"));
  EXPECT_TRUE(refused(changed(scratch, "mamba", with("mamba", "\"state_size\": 8", "\"state_size\": 9"), nothing),
                      "config says"));
  EXPECT_TRUE(refused(changed(scratch, "mamba", with("mamba", "\"use_bias\": true", "\"use_bias\": false"), nothing),
                      "in_proj.bias (120) belongs to no part"));
  EXPECT_TRUE(refused(
      changed(scratch, "mamba", "",
              [](TensorMap& tensors) { tensors["model.backbone.norm_f.weight"] = Tensor::zeros({20}, DType::f32); }),
      "one tensor under two names"));
  EXPECT_TRUE(
      refused(changed(scratch, "mamba", "",
                      [](TensorMap& tensors) { tensors["backbone.norm_f.weight"] = Tensor::zeros({20}, DType::i64); }),
              "holds i64, expected floating point"));
}

TEST(ModelFile, EndOfTextIsThatOfTheGenerationConfig) {
  const ScratchDirectory scratch;
  const Path model = changed(scratch, "mamba", "", [](TensorMap&) {});
  EXPECT_EQ(ModelFile::open(model).config.eos_token_id, (std::vector<int64_t>{3, 5}));
  write_file(model / "generation_config.json", R"({"eos_token_id": 9})");
  EXPECT_EQ(ModelFile::open(model).config.eos_token_id, std::vector<int64_t>{9});
  write_file(model / "generation_config.json", "[");
  EXPECT_TRUE(refused(model, "generation_config.json"));
}

TEST(ModelFile, StoredDtypesAreKeptUnlessAskedOtherwise) {
  const ScratchDirectory scratch;
  const Path mixed = changed(scratch, "mamba", "", [](TensorMap& tensors) {
    for (auto& [name, tensor] : tensors)
      if (!name.ends_with("A_log") && !name.ends_with(".D")) tensor = tensor.to(DType::f16);
    tensors.at("backbone.layers.0.mixer.x_proj.weight") =
        tensors.at("backbone.layers.0.mixer.x_proj.weight").to(DType::bf16);
  });
  const ModelFile file = ModelFile::open(mixed);
  EXPECT_EQ(file.dtype, DType::f16);
  const auto model = Model::open(file, {.as_stored = true});
  EXPECT_EQ(model->options().dtype, DType::f16);
  const auto dtype_of = [&](const char* name) { return model->params().find(name)->var.value.dtype(); };
  EXPECT_EQ(dtype_of("backbone.layers.0.mixer.in_proj.weight"), DType::f16);
  EXPECT_EQ(dtype_of("backbone.layers.0.mixer.x_proj.weight"), DType::bf16);
  EXPECT_EQ(dtype_of("backbone.layers.0.mixer.A_log"), DType::f32);
  EXPECT_EQ(dtype_of("backbone.norm_f.weight"), DType::f32);
  // In place, not copied.
  EXPECT_EQ(model->params().find("backbone.embedding.weight")->var.value.raw(),
            file.tensors.at("backbone.embedding.weight").raw());
  const auto wide = Model::open(file, {.dtype = DType::f32});
  EXPECT_EQ(wide->params().find("backbone.embedding.weight")->var.value.dtype(), DType::f32);
  EXPECT_TRUE(fails_with("as stored", [&] { Model::open(file, {.as_stored = true, .trainable = true}); }));
}

TEST(ModelFile, AConfigsInitialValuesAreTheModelsOwn) {
  const ScratchDirectory scratch;
  const ModelConfig config = ModelConfig::preset("bytes-1m");
  write_new_model(scratch.path(), config, 7, {.dtype = DType::bf16, .shard_bytes = 500000});
  const auto written = Model::open(scratch.path(), {.as_stored = true});
  const auto created = Model::create(config, 7, {.dtype = DType::bf16});
  ASSERT_EQ(written->params().all().size(), created->params().all().size());
  for (const auto& param : created->params().all()) {
    const Tensor found = written->params().find(param->name)->var.value, expected = param->var.value;
    ASSERT_EQ(found.dtype(), expected.dtype()) << param->name;
    EXPECT_EQ(std::memcmp(found.raw(), expected.raw(), static_cast<size_t>(expected.bytes())), 0) << param->name;
  }
}

}  // namespace
}  // namespace ssm

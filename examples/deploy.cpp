// Run a compiled bundle from C++ with onnxruntime alone.
//
//   g++ -std=c++17 deploy.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o deploy
//   ./deploy BUNDLE/model.onnx [BUNDLE/lib/linux-x86_64/libgraphopt_kernels.so]
//
// The library is needed only where the bundle has one: where the model uses graphopt's operators.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL [KERNELS]\n", argv[0]);
    return 2;
  }
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "deploy");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    if (argc > 2) options.RegisterCustomOpsLibrary(argv[2]);
    Ort::Session session(env, argv[1], options);

    std::array<float, 64> image{};
    const std::array<std::int64_t, 4> shape{1, 1, 8, 8};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value input =
        Ort::Value::CreateTensor<float>(memory, image.data(), image.size(), shape.data(), shape.size());
    const char* const inputs[] = {"image"};
    const char* const outputs[] = {"logits"};
    const auto result = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);

    const float* logits = result[0].GetTensorData<float>();
    std::printf("class %d\n", static_cast<int>(std::max_element(logits, logits + 10) - logits));
  } catch (const Ort::Exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

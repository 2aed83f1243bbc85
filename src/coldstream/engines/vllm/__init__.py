"""vLLM behind `EngineProtocol`, and our weights behind vLLM's loader: the only place that imports vllm.

choice      which engine a model gets, and why                 no vllm
sampling    a request's parameters in vLLM's terms             no vllm
engine      requests to an AsyncLLM, and its outputs back      no vllm: a thing with `AsyncLlm`'s methods
stats       what the engine is doing                           no vllm
images      where images stand in a prompt that vLLM expands   no vllm
folder      config and tokenizer where vLLM reads them         no vllm
handover    what the server tells the process that loads, and what it hears of it
weights     a checkpoint's tensors for one process of a host   torch
ranks       for its other processes                            torch
launch      an AsyncLLM of a plan                              vllm
loader      vLLM's loader, which takes `weights`               vllm
plugin      what vLLM calls in each of its processes           vllm, there
"""

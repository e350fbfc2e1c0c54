"""The paper's setting, whatever the task (arXiv:2605.06139, D.1 to D.3), on 8 GPUs.

Adam, learning rate 1e-6, constant; K = 8; two updates a step; token clip 0.2; sampled
at temperature 1, evaluated at 0.6. What it leaves open is ours: precision, mesh, what
is in memory at once.
"""

from configs import meshes

BACKBONES = {  # preset of configs/models.py -> hub id
  'qwen3_1.7b': 'Qwen/Qwen3-1.7B-Base',
  'qwen3_4b': 'Qwen/Qwen3-4B-Base',
  'qwen3_8b': 'Qwen/Qwen3-8B-Base',
  'qwen3_14b': 'Qwen/Qwen3-14B-Base',
  'llama3.1_8b': 'meta-llama/Llama-3.1-8B-Instruct',
  'mistral_7b_v0.1': 'mistralai/Mistral-7B-Instruct-v0.1',
  'deepseek_r1_qwen_1.5b': 'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B',
}


def setting(config, backbone: str):
  """Set what all tasks share; weights by `policy.path`, from the hub by default."""
  config.policy.name, config.policy.path = backbone, BACKBONES[backbone]
  config.policy.dtype = 'bfloat16'
  config.policy.remat = 'full'
  config.mesh.shape = meshes.MESHES['gpus_8'].shape
  config.samples_per_prompt = 8
  config.updates_per_step = 2
  config.micro_prompts = 8  # a group per GPU
  config.sampling.temperature = 1.0
  config.objective.token_clip = 0.2
  config.objective.logprob_chunk = 128
  config.optimizer.update(learning_rate=1e-6, schedule='constant', b1=0.9, b2=0.999,
                          weight_decay=0.1)
  config.eval.temperature = 0.6
  return config


def reasoning(config, backbone: str):
  """Set what mathematics and programs share: 256 prompts, responses of 4096 tokens."""
  setting(config, backbone)
  config.prompts_per_step = 256  # in minibatches of 128
  config.micro_prompts = 2
  config.sampling.max_new_tokens = 4096
  config.sampling.prompts_at_once = 32  # graded while the next ones decode
  config.sampling.prompt_buckets = (256, 512, 1024, 2048)
  config.sampling.chunk = 256
  config.num_steps = 200
  config.eval.update(every=20, problems=20_000, samples=1, final_samples=1)
  config.checkpoint.every = 20
  return config

"""Whole training steps of TRL's GRPOTrainer and tunix's GRPOLearner, one at a time.

Both drive their own loop; it runs in a thread and is let go a step at a time. Imported
in the peer's own interpreter; nothing of ours but `shapes` is needed there. And tunix's
sampler by itself.
"""

import itertools
import os
import queue
import tempfile
import threading

from benchmarks import shapes

LEARNING_RATE, CLIP = 1e-4, 0.2
FOREVER = 10**9  # steps
NEVER = 1 << 20  # a token outside the vocabulary: no response of tunix ends early


class Turns:
  """A loop in a thread that does one step whenever it is told to."""

  def __init__(self, loop):
    """Start `loop()`, which calls `begin` before and `end` after each step."""
    self._go, self._done = threading.Semaphore(0), queue.Queue()

    def run():
      try:
        loop()
        self._done.put(RuntimeError('the loop ended'))
      except BaseException as error:
        self._done.put(error)
        raise
    self._thread = threading.Thread(target=run, daemon=True)

  def once(self):
    """Let one step go; return what it ended with."""
    if self._thread.ident is None:
      self._thread.start()
    self._go.release()
    found = self._done.get()
    if isinstance(found, BaseException):
      raise found
    return found

  def begin(self) -> None:
    """Wait to be let go."""
    self._go.acquire()

  def end(self, found) -> None:
    """Say that the step is done."""
    self._done.put(found)


def trl(shape: shapes.Shape, fields: dict, micro: int):
  """Build TRL's step: GRPO, no reference policy, `micro` sequences at once."""
  import datasets
  import transformers
  from trl import GRPOConfig, GRPOTrainer

  batch, samples, width, new = shape
  rows, vocab = batch * samples, fields['vocab_size']
  policy = shapes.torch_policy(fields, longest=width + new)
  texts = shapes.prompts(shape, vocab)
  half = fields['dtype'] == 'bfloat16'
  args = GRPOConfig(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=micro,
    gradient_accumulation_steps=rows // micro, num_generations=samples,
    max_completion_length=new, temperature=1.0, top_k=0, top_p=1.0, beta=0.0,
    epsilon=CLIP, learning_rate=LEARNING_RATE, lr_scheduler_type='constant',
    max_grad_norm=1.0, max_steps=FOREVER, use_cpu=policy.device.type == 'cpu',
    bf16=half, gradient_checkpointing=fields['remat'] == 'full', report_to='none',
    save_strategy='no', logging_strategy='no', disable_tqdm=True,
    generation_kwargs={'min_new_tokens': new})
  lengths = []

  def reward(completions, completion_ids, **_):
    lengths.extend(map(len, completion_ids))
    return [shapes.verdict(text) for text in completions]

  class OneStep(transformers.TrainerCallback):
    def on_step_begin(self, *_, **__):
      turns.begin()

    def on_step_end(self, *_, **__):
      turns.end(lengths[:])
      lengths.clear()

  trainer = GRPOTrainer(
    model=policy, args=args, reward_funcs=reward, callbacks=[OneStep()],
    train_dataset=datasets.Dataset.from_list([{'prompt': text} for text in texts]),
    processing_class=_fast_tokenizer(vocab))
  trainer.log = lambda *_, **__: None
  turns = Turns(trainer.train)

  def check(lengths):
    assert lengths == [new] * rows, f'{len(lengths)} responses of {set(lengths)} tokens'

  return turns.once, check


def _fast_tokenizer(vocab: int):
  """Return `shapes.Words` as transformers' tokenizer."""
  import tokenizers
  import transformers

  words = {word: i for i, word in enumerate(shapes.vocabulary(vocab))}
  found = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='t0'))
  found.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  folder = tempfile.mkdtemp()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=found, pad_token='t0', eos_token='t2',
    padding_side='left').save_pretrained(folder)
  return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def tunix(shape: shapes.Shape, fields: dict, micro: int):
  """Build tunix's step: GRPO, no reference policy, `micro` groups at once.

  Its loader looks ahead, so a step is what lies between two batches of verdicts: one
  update and one rollout.
  """
  os.environ.setdefault('WANDB_MODE', 'disabled')
  import numpy as np
  from tunix.rl.grpo import grpo_learner

  batch, samples, _, new = shape
  rows, lengths = batch * samples, []
  texts = np.array(shapes.prompts(shape, fields['vocab_size']))

  def reward(prompts, completions, **_):
    verdicts = [shapes.verdict(text) for text in completions]
    lengths.extend(len(text.split()) for text in completions)
    if len(lengths) == rows:
      turns.end(lengths[:])
      lengths.clear()
      turns.begin()
    return verdicts

  learner = grpo_learner.GRPOLearner(
    rl_cluster=_cluster(shape, fields, micro), reward_fns=reward,
    algo_config=grpo_learner.GRPOConfig(
      num_generations=samples, num_iterations=1, beta=0.0, epsilon=CLIP))

  def batches():
    while True:
      yield {'prompts': texts}

  def loop():
    turns.begin()  # the first step is a rollout alone
    learner.train(batches())

  turns = Turns(loop)
  turns.once()

  def check(lengths):
    assert lengths == [new] * rows, f'{len(lengths)} responses of {set(lengths)} tokens'

  return turns.once, check


def _cluster(shape: shapes.Shape, fields: dict, micro: int):
  """Return tunix's cluster on one device, with Qwen3 of a PolicyConfig's fields."""
  import jax
  import numpy as np
  import optax
  from tunix.rl import rl_cluster
  from tunix.rl.rollout import base_rollout

  batch, _, width, new = shape
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
  role = rl_cluster.Role
  return rl_cluster.RLCluster(
    actor=_qwen3(fields), reference=None,
    tokenizer=shapes.Words(fields['vocab_size'], NEVER),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys((role.ACTOR, role.REFERENCE, role.ROLLOUT), mesh),
      rollout_engine='vanilla',
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0),
                                    optax.adamw(LEARNING_RATE)),
        eval_every_n_steps=FOREVER, max_steps=FOREVER, mini_batch_size=batch,
        train_micro_batch_size=micro, rollout_micro_batch_size=batch,
        compute_logps_micro_batch_size=batch),
      rollout_config=base_rollout.RolloutConfig(
        max_tokens_to_generate=new, max_prompt_length=width, kv_cache_size=width + new,
        temperature=1.0, top_p=1.0, top_k=None, eos_tokens=[NEVER])))


def _qwen3(fields: dict):
  """Return tunix's Qwen3 of a PolicyConfig's fields."""
  from flax import nnx
  from tunix.models.qwen3 import model

  return model.Qwen3(model.ModelConfig(
    num_layers=fields['layers'], vocab_size=fields['vocab_size'],
    embed_dim=fields['width'], hidden_dim=fields['mlp_width'],
    num_heads=fields['heads'], head_dim=fields['head_dim'],
    num_kv_heads=fields['kv_heads'], rope_theta=int(fields['rope_theta']),
    norm_eps=fields['norm_eps'], use_tied_embedding=fields['tied_embeddings'],
  ), rngs=nnx.Rngs(params=0))


def tunix_rollout(shape: shapes.Shape, fields: dict):
  """Build tunix's own sampler, with log-probabilities, as its learner calls it."""
  from tunix.generate import sampler

  _, samples, width, new = shape
  sample = sampler.Sampler(
    _qwen3(fields), shapes.Words(fields['vocab_size'], NEVER),
    sampler.CacheConfig(
      cache_size=width + new, num_layers=fields['layers'],
      num_kv_heads=fields['kv_heads'], head_dim=fields['head_dim']))
  texts = [text for text in shapes.prompts(shape, fields['vocab_size'])
           for _ in range(samples)]
  seeds = itertools.count()

  def once():
    return sample(texts, max_generation_steps=new, max_prompt_length=width,
                  temperature=1.0, top_p=1.0, top_k=None, seed=next(seeds),
                  eos_tokens=[NEVER], return_logprobs=True)

  def check(found):
    assert [len(tokens) for tokens in found.tokens] == [new] * len(texts)

  return once, check


PEERS = {'trl': ('TRL GRPOTrainer', trl), 'tunix': ('tunix GRPOLearner', tunix)}

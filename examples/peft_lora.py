"""peft: LoRA with vSAM, which perturbs only the adapters, and keeps a state of their size.

The bridge is the order: `get_peft_model` first, then `VSAM(model)` or `SAM(model)`. Frozen weights take no
part, and a SAM that was made before says that the model has other parameters. A tiny BERT with random
weights keeps it offline.
"""

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from ausam_ext import VSAM


def make_data(n=256):
    ids = torch.randint(2, 50, (n, 12))
    labels = torch.randint(0, 2, (n,))
    ids[:, 0] = labels  # what the model has to find
    return ids, labels


def make_bert():
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def make_model():
    return get_peft_model(
        make_bert(),
        LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, target_modules=["query", "value"]),
    )


def train(model, sam, ids, labels, epochs=10):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(epochs):
        for x, y in zip(ids.split(32), labels.split(32), strict=True):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = model(input_ids=x, labels=y).loss
                loss.backward()
                return loss

            sam.backward(closure)
            optimizer.step()


if __name__ == "__main__":
    torch.manual_seed(0)
    ids, labels = make_data()
    model = make_model()
    vsam = VSAM(model, rho=0.05, warmup_steps=20)
    train(model, vsam, ids, labels)
    model.eval()
    with torch.no_grad():
        accuracy = (model(input_ids=ids).logits.argmax(1) == labels).float().mean()
    print(f"accuracy {accuracy:.3f}")
    model.print_trainable_parameters()

"""A small GPT: an encoder with a causal mask, embeddings of tokens and positions, weight tying, warm-up and cosine."""

import math

import torch

nn, F = torch.nn, torch.nn.functional


class GPT(nn.Module):
    def __init__(self, vocabulary, length, width=16, heads=4, layers=2):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens, positions, mask):
        x = self.token(tokens) * math.sqrt(self.token.embedding_dim) + self.position(positions)
        return self.head(self.blocks(x, mask=mask))


def make(data):
    return GPT(vocabulary=11, length=data["tokens"].shape[1] - 1)


def train(model, data):
    inputs, targets = data["tokens"][:, :-1], data["tokens"][:, 1:]
    decay = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=3e-4)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[5])
    losses, others = [], []
    for _ in range(25):
        logits = model(inputs, data["positions"], data["mask"])
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        others += [float(norm), optimizer.param_groups[0]["lr"]]
    model.eval()
    with torch.no_grad():
        others += F.softmax(model(inputs, data["positions"], data["mask"])[0, -1], dim=-1).tolist()
    return losses, others

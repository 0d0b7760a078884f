"""A multilayer perceptron: named layers, Adam, a step schedule, gradient clipping, early stopping."""

import torch

nn, F = torch.nn, torch.nn.functional


class MLP(nn.Module):
    def __init__(self, features, hidden, classes):
        super().__init__()
        self.fc1 = nn.Linear(features, hidden, bias=False)  # the norm has a bias
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, classes)
        self.register_buffer("scale", torch.ones(1))
        self.apply(self.init_weights)

    def init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x):
        x = F.relu(self.norm(self.fc1(x)))
        x = torch.tanh(self.fc2(x)) * self.scale
        return self.head(x)


def make(data):
    return MLP(data["x"].shape[1], 32, 4)


def train(model, data):
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    losses, others, best = [], [], float("inf")
    for _ in range(15):
        model.train()
        optimizer.zero_grad()
        loss = criterion(model(data["x"]), data["y"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)
        optimizer.step()
        scheduler.step()

        model.eval()
        with torch.no_grad():
            logits = model(data["x_val"])
            val_loss = criterion(logits, data["y_val"]).item()
            accuracy = (logits.argmax(dim=1) == data["y_val"]).float().mean().item()
        if val_loss < best:
            best, state = val_loss, {name: p.detach() * 1 for name, p in model.state_dict().items()}
        losses.append(loss.item())
        others += [val_loss, accuracy, scheduler.get_last_lr()[0]]
    model.load_state_dict(state)
    with torch.no_grad():
        others.append(criterion(model(data["x_val"]), data["y_val"]).item())
    return losses, others

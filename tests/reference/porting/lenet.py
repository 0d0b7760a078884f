"""LeNet on images: a DataLoader, SGD with momentum, OneCycleLR, two parameter groups, a frozen layer."""

import torch

nn, data_utils = torch.nn, torch.utils.data


class LeNet(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5, padding=2, padding_mode="reflect"),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.1),
            nn.AvgPool2d(kernel_size=2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16 * 5 * 5, 84), nn.ELU(), nn.Linear(84, classes))

    def forward(self, x):
        return self.classifier(self.features(x))


def make(data):
    return LeNet()


def train(model, data):
    for parameter in model.features[0].parameters():
        parameter.requires_grad = False
    loader = data_utils.DataLoader(
        data_utils.TensorDataset(data["images"], data["labels"]), batch_size=8, shuffle=False
    )
    groups = [
        {"params": model.features.parameters(), "lr": 0.01},
        {"params": model.classifier.parameters(), "weight_decay": 1e-3},
    ]
    epochs = 4
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[0.01, 0.05], epochs=epochs, steps_per_epoch=len(loader)
    )
    criterion = nn.NLLLoss(reduction="sum")
    log_softmax = nn.LogSoftmax(dim=1)
    losses, others = [], []
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(log_softmax(model(images)), labels) / len(images)
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        if epoch == 0:  # unfreeze
            for parameter in model.features[0].parameters():
                parameter.requires_grad = True
        others += [g["momentum"] for g in optimizer.param_groups] + [g["lr"] for g in optimizer.param_groups]
    model.eval()
    with torch.no_grad():
        others += [float((model(images).argmax(1) == labels).sum()) for images, labels in loader]
    return losses, others

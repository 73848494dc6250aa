"""Models as people write them: each is exported by ``cutlayer export --model strangers.py:NAME --cut …`` in test_strangers.py.

Nothing in here knows Cutlayer. ``CUTS``: where each is cut, the shape of one sample, and how many tensors cross.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class MnistNet(nn.Module):
    """The functional style of many tutorials."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc1 = nn.Linear(8 * 4 * 4, 20)
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=1)

    def num_flat_features(self, x):
        size = x.size()[1:]
        num_features = 1
        for s in size:
            num_features *= s
        return num_features


class SizesAcross(nn.Module):
    """Sizes that are taken at the top and used behind the cut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Linear(6 * 4 * 4, 5), nn.Tanh())

    def forward(self, x):
        b, c, h, w = x.shape
        assert c == 3, "colour images"
        x = self.stem(x)
        x = F.adaptive_avg_pool2d(x, (h // 2, w // 2))
        x = x.reshape(b, -1)
        return self.head(x) / math.sqrt(x.shape[-1])


class Blocks(nn.Module):
    """ModuleList loops, in-place adds, weight init, a flag."""

    def __init__(self, depth=3, width=8, final_norm=True):
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(depth)])
        self.norm = nn.LayerNorm(width) if final_norm else None
        self.out = nn.Linear(width, 3)
        self.apply(self._init)

    @staticmethod
    def _init(m):
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.2)
            nn.init.zeros_(m.bias)

    def forward(self, x, mask=None):
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            y = block(x)
            if mask is not None:
                y = y * mask
            x += y * (1.0 / (i + 1))
        if self.norm is not None:
            x = self.norm(x)
        return self.out(x)


class TinyUNet(nn.Module):
    """Skips over the cut, interpolation to the skip's size, cat."""

    def __init__(self):
        super().__init__()
        self.enc1 = self._double(1, 4)
        self.enc2 = self._double(4, 8)
        self.middle = self._double(8, 8)
        self.dec2 = self._double(16, 4)
        self.dec1 = self._double(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def _double(self, i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU())

    def forward(self, x):
        e1 = self.enc1(x)
        e2 = self.enc2(F.max_pool2d(e1, 2))
        m = self.middle(F.max_pool2d(e2, 2))
        d2 = F.interpolate(m, size=e2.shape[2:], mode="bilinear", align_corners=False)
        d2 = self.dec2(torch.cat([d2, e2], 1))
        d1 = F.interpolate(d2, scale_factor=2)
        d1 = F.pad(d1, [0, e1.shape[3] - d1.shape[3], 0, e1.shape[2] - d1.shape[2]])
        return self.out(self.dec1(torch.cat((d1, e1), dim=1)))


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len=50):
        super().__init__()
        pe = torch.zeros(max_len, d_model)
        position = torch.arange(0, max_len, dtype=torch.float).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0), persistent=False)

    def forward(self, x):
        return x + self.pe[:, : x.size(1)]


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class TextTransformer(nn.Module):
    """Attention as in many repositories, a non-persistent positional buffer, a causal mask made on the fly."""

    def __init__(self, width=8):
        super().__init__()
        self.inp = nn.Linear(4, width)
        self.pos = PositionalEncoding(width)
        self.attn1, self.attn2 = Attention(width, 2), Attention(width, 2)
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 6)

    def forward(self, x):
        x = self.pos(self.inp(x))
        x = x + self.attn1(self.n1(x))
        x = x + self.attn2(self.n2(x))
        mask = torch.tril(torch.ones(x.size(1), x.size(1), device=x.device))
        w = mask / mask.sum(dim=-1, keepdim=True)
        return self.head(torch.einsum("st,btd->bsd", w, x))[:, -1, :]


class ViT(nn.Module):
    """Class token by expand, position embedding as a parameter, unpacked chunk and einsum."""

    def __init__(self, dim=8, patch=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 5, dim) * 0.02)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.head = nn.Linear(dim, 4)

    def forward(self, img):
        x = self.patch_embed(img).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((cls, x), dim=1)
        x = x + self.pos_embed[:, : x.shape[1]]
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        dots = torch.einsum("b i d, b j d -> b i j", q, k) * x.shape[-1] ** -0.5
        x = x + torch.einsum("bij,bjd->bid", torch.softmax(dots, -1), v)
        x = x + self.mlp(x)
        return self.head(x[:, 0])


class ShuffleUnit(nn.Module):
    """Channel split and shuffle by hand."""

    def __init__(self, c):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(c // 2, c // 2, 3, padding=1, groups=c // 2), nn.BatchNorm2d(c // 2), nn.ReLU())

    def forward(self, x):
        x1, x2 = x.chunk(2, dim=1)
        out = torch.cat((x1, self.branch(x2)), dim=1)
        n, c, h, w = out.size()
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def shuffle_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), ShuffleUnit(8), ShuffleUnit(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


class Recurrence(nn.Module):
    """A state that starts at zero, and a loop over time."""

    def __init__(self, hidden=6):
        super().__init__()
        self.hidden = hidden
        self.cell_in, self.cell_state = nn.Linear(3, hidden), nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, 2)

    def forward(self, x):
        h = torch.zeros(x.size(0), self.hidden, device=x.device, dtype=x.dtype)
        outputs = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell_in(x[:, t]) + self.cell_state(h))
            outputs.append(h)
        y = self.norm(torch.stack(outputs, dim=1))
        return self.out(y.mean([1]))


class Gates(nn.Module):
    """Squeeze and excitation, an attribute that is a plain tensor, constants in cat, slices, python scalars."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(6, 2), nn.Linear(2, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = (x - self.mean) / 0.25
        blurred = F.conv2d(x, self.kernel.repeat(3, 1, 1, 1), padding=1, groups=3)
        ramp = torch.linspace(-1, 1, x.shape[-1]).view(1, 1, 1, -1).expand(x.shape[0], 1, x.shape[2], -1)
        y = self.conv(torch.cat([blurred, ramp], dim=1))
        s = y.mean([2, 3])
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(s))))
        y = y * s[:, :, None, None] * 0.5 + 1
        y = y[:, :, 1:-1, 1:-1]
        return self.head(torch.flatten(F.avg_pool2d(y, y.shape[2:]), 1))


class TwoHeads(nn.Module):
    """Several outputs, a dict of layers, nn.Identity, a default argument."""

    def __init__(self, residual=True):
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
        self.skip = nn.Identity() if residual else None
        self.mean, self.spread = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x, temperature=2.0):
        h = x
        for name in self.layers:
            h = F.elu(self.layers[name](h)) + (self.skip(h) if self.skip is not None else 0)
        return self.mean(h) / temperature, F.softplus(self.spread(h)) + 1e-3


class Wavelets(nn.Module):
    """Signals: padding by hand, unfold, running sums, a dense block, assignment to a slice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(2, 4, 5)
        self.dense = nn.ModuleList([nn.Conv1d(4 + 2 * i, 2, 3, padding=1) for i in range(3)])
        self.norm = nn.GroupNorm(2, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = F.pad(x, (2, 2), mode="reflect")
        features = [F.leaky_relu(self.conv1(x), 0.1)]
        for layer in self.dense:
            features.append(F.relu(layer(torch.cat(features, dim=1))))
        y = self.norm(torch.cat(features, 1))
        y = y.clone()
        y[:, 0] = y[:, 0] * 2
        windows = y.unfold(-1, 4, 4).mean(-1)
        total = windows.cumsum(-1)[..., -1]
        return self.head(total / len(self.dense))


class TwoTransformers(nn.Module):
    """PyTorch's own encoder, cut inside."""

    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(self.inp(x)).mean(1))


class Loose(nn.Module):
    """A dict of results, arguments that are never given, a table read by an index buffer, a mask on both sides of the cut, a dtype asked of
    a weight, a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.never = nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(2, 2)
        self.table = nn.Parameter(torch.linspace(-1, 1, 7))
        self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4)[None, :] + 3)
        self.mask = torch.ones(4, 4).tril()

    def forward(self, x, *args, scale=None, **kwargs):
        x = x.to(self.a.weight.dtype)
        bias = self.table[self.index.view(-1)].view(4, 4) * self.mask
        h = torch.relu(self.a(bias @ x))
        logits = self.b(self.mask @ h)
        return {"logits": logits if scale is None else logits * scale, "pooled": logits.mean(1)}


class Dropping(nn.Module):
    """Functional dropout behind the cut."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = F.dropout(F.relu(self.a(x)), 0.5, training=self.training)
        return self.b(F.dropout(x, p=0.2, training=self.training))


CUTS = {
    "MnistNet": [("conv1", (1, 12, 12), 1), ("fc1", (1, 12, 12), 1)],
    "SizesAcross": [("stem.1", (3, 8, 8), 1), ("stem", (3, 8, 8), 1)],
    "Blocks": [("embed", (5,), 1), ("blocks.1.1", (7, 5), 2)],
    "TinyUNet": [("enc2", (1, 9, 10), 2), ("dec2", (1, 9, 10), 2)],
    "TextTransformer": [("attn1.qkv", (5, 4), 2), ("n2", (5, 4), 2)],
    "ViT": [("patch_embed", (3, 8, 8), 1), ("mlp.0", (3, 8, 8), 2)],
    "shuffle_net": [("1", (3, 8, 8), 1), ("2.branch.0", (3, 8, 8), 2)],
    "Recurrence": [("norm", (4, 3), 1)],
    "Gates": [("conv", (3, 6, 6), 1), ("fc1", (3, 6, 6), 2)],
    "TwoHeads": [("layers.b", (6,), 2)],
    "Wavelets": [("dense.1", (2, 16), 3), ("norm", (2, 16), 1)],
    "TwoTransformers": [("inp", (4, 3), 1), ("encoder.layers.0", (4, 3), 1)],
    "Loose": [("a", (4, 6), 1)],
    "Dropping": [("a", (6,), 1)],
}

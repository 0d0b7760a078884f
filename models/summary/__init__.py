"""L6: the cost of a model: parameters, multiply-accumulates, activations, published accuracy."""

from models.summary.cost import AttentionCost, Part, attention_costs, macs, parameters, parts

__all__ = ["AttentionCost", "Part", "attention_costs", "macs", "parameters", "parts"]

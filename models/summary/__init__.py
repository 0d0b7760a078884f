"""L6: the cost of a model, in parameters and multiply-accumulates, and published accuracy."""

from models.summary.cost import AttentionCost, Part, attention_costs, macs, parameters, parts
from models.summary.table import summary

__all__ = ["AttentionCost", "Part", "attention_costs", "macs", "parameters", "parts", "summary"]

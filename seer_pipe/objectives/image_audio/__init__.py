"""A picture and its sound find each other: pairs of AVID (arXiv 2004.12943), the loss of CLIP (arXiv 2103.00020)."""

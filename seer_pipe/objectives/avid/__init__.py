"""AVID: a picture and its sound find each other in a memory (Morgado et al. 2021, arXiv 2004.12943)."""

"""What is learnt: two-tower retriever, ranker, popularity baseline, content encoders."""

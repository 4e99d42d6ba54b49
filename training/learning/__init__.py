"""Learning on Ray: what is learnt, by which learner, judged how, tracked where."""

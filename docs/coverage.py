"""The papers that this library sets out to cover, and what covers each. ``python docs/tables.py`` writes coverage.md from it."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    title: str
    authors: str
    arxiv: str
    family: str
    what: str  # public functions, or an executable example where plain torch is already the right tool
    status: str  # done or planned


# fmt: off
PAPERS = tuple(Paper(*row) for row in (
    ("Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
     "Mao, Mohri, Zhong 2023", "2304.07288", "cross-entropy", "comp_sum_loss, gce_loss, mae_loss", "done"),
    ("RAMP: Boosting Adversarial Robustness Against Multiple l_p Perturbations for Universal Robustness",
     "Jiang, Singh 2024", "2402.06827", "cross-entropy", "kl_logit_loss", "done"),
    ("UDC: A Unified Neural Divide-and-Conquer Framework for Large-Scale Combinatorial Optimization Problems",
     "Zheng et al. 2024", "2407.00312", "cross-entropy", "example", "planned"),
    ("Global Convergence of Sub-gradient Method for Robust Matrix Recovery: Small Initialization, Noisy "
     "Measurements, and Over-parameterization",
     "Ma, Fattahi 2022", "2202.08788", "none", "example", "planned"),
    ("Precision Spatio-Temporal Feature Fusion for Robust Remote Sensing Change Detection",
     "Wijenayake et al. 2025", "2507.11523", "segmentation", "segmentation_loss, lovasz_softmax_loss", "planned"),
    ("AnyLoss: Transforming Classification Metrics into Loss Functions",
     "Han, Moniz, Chawla 2024", "2405.14745", "segmentation", "any_loss", "planned"),
    ("Incorporating Surrogate Gradient Norm to Improve Offline Optimization Techniques (IGNITE)",
     "Dao et al. 2025", "2503.04242", "none", "example", "planned"),
    ("Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data",
     "Dang et al. 2023", "2301.00437", "segment moments", "example", "planned"),
    ("Efficient block contrastive learning via parameter-free meta-node approximation (PamC)",
     "Kulatilleke, Portmann, Chandra 2022", "2209.14067", "segment moments", "pamc_loss", "done"),
    ("Rethinking the Harmonic Loss via Non-Euclidean Distance Layers",
     "Miller-Golub et al. 2026", "2603.10225", "cross-entropy", "harmonic_loss", "done"),
    ("Unified Negative Pair Generation toward Well-discriminative Feature Space for Face Recognition (UNPG)",
     "Jung et al. 2022", "2203.11593", "cross-entropy", "unpg_loss", "done"),
    ("Can Transformers Do Enumerative Geometry? (DRA)",
     "Hashemi, Corominas, Giacchetto 2024", "2408.14915", "none", "example", "planned"),
    ("Spectral Subspace Clustering for Attributed Graphs (S2CAG)",
     "Lin et al. 2024", "2411.11074", "segment moments", "example", "planned"),
    ("Topologically faithful image segmentation via induced matching of persistence barcodes",
     "Stucki et al. 2022", "2211.15272", "Betti matching", "betti_matching_loss", "done"),
    ("Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning",
     "Wang et al. 2019", "1904.06627", "cross-entropy", "multi_similarity_loss", "done"),
    ("Orthogonal Projection Loss",
     "Ranasinghe et al. 2021", "2103.14021", "segment moments", "orthogonal_projection_loss", "done"),
    ("Optimizing NOTEARS Objectives via Topological Swaps",
     "Deng et al. 2023", "2305.17277", "none", "example", "planned"),
    ("DatasetEquity: Are All Samples Created Equal? In The Quest For Equity Within Datasets",
     "Shrivastava et al. 2023", "2308.09878", "cross-entropy", "dataset_equity_weight", "done"),
    ("Sharpness-Aware Training for Free (SAF, MESA)",
     "Du et al. 2022", "2205.14083", "cross-entropy", "kl_logit_loss", "done"),
    ("ElasticFace: Elastic Margin Loss for Deep Face Recognition",
     "Boutros et al. 2021", "2109.09416", "cross-entropy", "elastic_arcface_loss, elastic_cosface_loss", "done"),
    ("Distributed Methods with Compressed Communication for Solving Variational Inequalities, with Theoretical Guarantees (MASHA)",
     "Beznosikov et al. 2021", "2110.03313", "none", "example", "planned"),
    ("Unsupervised Manifold Linearizing and Clustering (MLC)",
     "Ding et al. 2023", "2301.01805", "cross-entropy", "example", "planned"),
    ("REG: Refined Generalized Focal Loss for Road Asset Detection on Thai Highways Using Vision-Based "
     "Detection and Segmentation Models",
     "Panboonyuen 2024", "2409.09877", "cross-entropy", "focal_loss", "done"),
    ("Neural Execution Engines: Learning to Execute Subroutines",
     "Yan et al. 2020", "2006.08084", "tensor attention", "example", "planned"),
    ("Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval (MW)",
     "Sheikholeslami et al. 2025", "2510.00137", "pairwise", "pairwise_auc_loss, linear_mw_loss", "done"),
    ("Learning Theory Can (Sometimes) Explain Generalisation in Graph Neural Networks",
     "Esser, Vankadara, Ghoshdastidar 2021", "2112.03968", "none", "example", "planned"),
    ("SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel "
     "distance-based loss functions for few-shot image classification",
     "Mendez-Ruiz et al. 2023", "2305.09062", "cross-entropy", "proto_triplet_loss", "done"),
    ("It Takes Two to Tango: Mixup for Deep Metric Learning (Metrix)",
     "Venkataramanan et al. 2021", "2106.04990", "cross-entropy", "pair_loss", "done"),
    ("Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
     "Zheng et al. 2023", "2302.02334", "segment moments", "gaussian_nb_head", "done"),
    ("Generalizing Few-Shot NAS with Gradient Matching",
     "Hu et al. 2022", "2203.15207", "none", "example", "planned"),
    ("Graph Density-Aware Losses for Novel Compositions in Scene Graph Generation",
     "Knyazev et al. 2020", "2005.08230", "cross-entropy", "density_weights", "done"),
    ("Label-independent hyperparameter-free self-supervised single-view deep subspace clustering",
     "Sindicic, Kopriva 2025", "2504.18179", "none", "example", "planned"),
    ("Hyperbolic Category Discovery (HypCD)",
     "Liu, He, Han 2025", "2504.06120", "cross-entropy", "supcon_loss, info_nce_loss", "done"),
    ("How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker Computation",
     "Alman, Song 2023", "2310.04064", "tensor attention", "tensor_attention, tensor_attention_n, tree_attention", "done"),
    ("The Malignant Tail: Spectral Segregation of Label Noise in Over-Parameterized Networks",
     "Wang 2026", "2603.02293", "none", "example", "planned"),
    ("Image-level Regression for Uncertainty-aware Retinal Image Segmentation (SAUNA)",
     "Dang, Nguyen, Tiulpin 2024", "2405.16815", "segmentation", "soft_jaccard_loss, stable_focal_l1_loss", "planned"),
    ("Improving Pareto Set Learning for Expensive Multi-objective Optimization via Stein Variational Hypernetworks (SVH-PSL)",
     "Nguyen et al. 2024", "2412.17312", "cross-entropy", "kernel_matmul", "planned"),
    ("Learnable Commutative Monoids for Graph Neural Networks (LCM)",
     "Ong, Velickovic 2022", "2212.08541", "none", "example", "planned"),
    ("Low Rank Matrix Completion via Robust Alternating Minimization in Nearly Linear Time",
     "Gu et al. 2023", "2302.11068", "segment moments", "example", "planned"),
    ("SymFace: Additional Facial Symmetry Loss for Deep Face Recognition",
     "Prakash et al. 2024", "2409.11816", "cross-entropy", "example", "planned"),
    ("SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition",
     "Zhong et al. 2022", "2205.12010", "cross-entropy", "sface_loss", "done"),
))
# fmt: on

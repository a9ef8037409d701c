"""What came out of training and evaluation runs: the paper's figures and tables (Sec. 5), cases, and one page.

    python -m scripts.report --runs runs/mpunet runs/unet --output_dir report/

From leaf to root: `read` takes in run folders; `statistics` computes; `tables`, `curves` and `cases` show; `layout` and
`summary` say it on the page; `page` writes it as one HTML file.
"""

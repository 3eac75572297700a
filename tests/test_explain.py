"Why a record has its score: what contributions add up to, and what the page of a file shows and refuses."
import html
import re

import numpy as np
import pandas as pd
import pytest
import torch

from ipbes_classifier.config import load_config
from ipbes_classifier.ensemble import on_scale
from ipbes_classifier.explain import _tokens, explain, explain_file, to_html, top_words
from ipbes_classifier.models import make_model
from ipbes_classifier.results import write_decisions
from ipbes_classifier.screen import Screener, as_records

SETTINGS = ['labels=[{name: A},{name: B}]','input.with_title=true','models={minilm: {num_train_epochs: 1, per_device_train_batch_size: 16}}','logging.progress=false']


def papers(n=60):
    "Every third is on A, every third on B."
    rng = np.random.default_rng(0)
    topic = np.arange(n)%3
    words = [['alien','invasive','weed'],['value','culture','trust'],['dust','star','orbit']]
    text = [' '.join([*words[t],*rng.choice([f'word{i}' for i in range(30)],8)]) for t in topic]
    return pd.DataFrame(dict(id=[f'P{i}' for i in range(n)], title=[f'On {x.split()[0]}' for x in text], abstract=text, keywords='', A=(topic==0).astype(int), B=(topic==1).astype(int)))


def train(folder, name):
    "A checkpoint of a model that knows the made-up records."
    folder.mkdir()
    model = make_model(name, load_config(env='', overrides=SETTINGS))
    (model.fit(papers(),papers(30)) if name=='minilm' else model.fit(papers())).save(folder)
    write_decisions(folder, dict(A=.5,B=.5), {})
    return folder


@pytest.fixture(scope='module')
def linear(tmp_path_factory): return train(tmp_path_factory.mktemp('m')/'linear', 'tfidf-logreg')


@pytest.fixture(scope='module')
def forest(tmp_path_factory): return train(tmp_path_factory.mktemp('m')/'forest', 'tfidf-random-forest')


def log_odds(score): return on_scale(np.array([score]),'logit')[0]


def test_exact_contributions_are_what_removing_a_lone_word_of_the_decision_function_says(linear):
    screener = Screener.load(linear)
    e, = explain(screener, dict(title='On weeds',abstract='An invasive alien weed, seen twice: weed.'), 'A')
    assert e.method=='exact'
    assert e.words.contribution.sum()+e.rest==pytest.approx(log_odds(e.score))
    vectoriser,classifier = screener.models[0].pipeline
    assert e.rest==pytest.approx(classifier.estimators_[0].intercept_[0])
    raised = set(top_words(e,4).query('contribution>0').word)
    assert {'invasive','alien','weed'}>=raised and len(raised)>=2


@pytest.mark.parametrize('name,method', [('tfidf-logreg','exact'),('tfidf-random-forest','occlusion')])
def test_the_words_that_made_a_label_stand_first(linear, forest, name, method):
    screener = Screener.load(linear if name=='tfidf-logreg' else forest)
    e, = explain(screener, papers().iloc[[1]], 'B')
    assert e.method==method
    assert top_words(e,1).word[0] in ('value','culture','trust') and top_words(e,1).contribution[0]>0


def test_several_models_name_their_methods_and_add_up(linear, forest):
    screener = Screener.load(linear, forest)
    e, = explain(screener, papers().iloc[[0]], 'A')
    assert e.method=='exact+occlusion'
    assert e.score==pytest.approx(screener.score(papers().iloc[[0]]).A_score[0])
    assert e.words.contribution.sum()+e.rest==pytest.approx(np.mean([log_odds(m.scores(papers().iloc[[0]])[0,0]) for m in screener.models]))


def test_integrated_gradients_add_up_to_the_way_from_nothing(tmp_path_factory):
    screener = Screener.load(train(tmp_path_factory.mktemp('m')/'encoder', 'minilm'))
    e, = explain(screener, papers().iloc[[0]], 'A', method='gradients', steps=200)
    model = screener.models[0]
    batch,given = _tokens(model, as_records(papers().iloc[[0]]))
    for i,place in enumerate(given):
        if place is not None: batch['input_ids'][0,i] = model.tokenizer.pad_token_id
    with torch.no_grad(): nothing = model.model(**{k:v.to(model.model.device) for k,v in batch.items()}).logits[0,0].item()
    assert e.method=='gradients' and e.words.contribution.abs().sum()>0
    assert e.rest==pytest.approx(nothing, abs=.02)
    assert sum(e.words.contribution)+nothing==pytest.approx(log_odds(e.score), abs=.02)


def test_what_does_not_fit_is_refused_with_what_would(linear, forest):
    forest,linear = Screener.load(forest),Screener.load(linear)
    for screener,method,words in [(forest,'exact','no linear model'),(linear,'gradients','no encoder'),(linear,'lime','known: auto')]:
        with pytest.raises(ValueError, match=words): explain(screener, 'text', 'A', method=method)
    with pytest.raises(ValueError, match='the model has A, B'): explain(linear, 'text', 'C')


@pytest.mark.parametrize('text', ['','   ','日本語の論文','İİ ǅ ﬃ invasive','&lt;b&gt; x','a'*5000,'weed '*3000])
def test_any_text_is_explained_and_shown_as_it_was_read(linear, text):
    e, = explain(Screener.load(linear), dict(title='T',abstract=text), 'A')
    shown = html.unescape(re.sub('<[^>]+>','',to_html(e,fields=['abstract']).split('</p>',1)[1]))
    assert shown==e.texts['abstract']
    assert e.words.contribution.sum()+e.rest==pytest.approx(log_odds(e.score))


def test_a_page_of_a_file_holds_its_first_records_and_no_script(linear, tmp_path):
    nasty = papers(9).assign(id=lambda d: ['<script>x</script>',*d.id[1:]], title=lambda d: ['" onmouseover="x','<img src=x>',*d.title[2:]])
    nasty.to_csv(tmp_path/'new.csv', index=False)
    assert explain_file(tmp_path/'new.csv', [linear], tmp_path/'why.html', first=4)==4
    page = (tmp_path/'why.html').read_text()
    assert page.count('<article>')==4 and page.count('class="explanation"')==8
    assert '<script' not in page and '<img' not in page and not re.search(r'<[^>]*onmouseover',page)
    assert "default-src 'none'" in page


def test_a_page_that_cannot_be_made_leaves_nothing(linear, tmp_path):
    (tmp_path/'empty.csv').write_text('title,abstract\n')
    for path,kwargs,words in [('empty.csv',{},'no records'),('absent.csv',{},'absent.csv'),('empty.csv',dict(first=0),'first')]:
        with pytest.raises((ValueError,OSError), match=words): explain_file(tmp_path/path, [linear], tmp_path/'why.html', **kwargs)
    with pytest.raises(ValueError, match='.html'): explain_file(tmp_path/'empty.csv', [linear], tmp_path/'why.pdf')
    assert sorted(p.name for p in tmp_path.iterdir())==['empty.csv']

"""A stand-in for the Hugging Face hub on 127.0.0.1: what huggingface_hub asks for when it uploads and downloads a model.

It speaks the calls of repositories, branches, commits, git LFS and downloads. It keeps contents by hash, so that a wrong one is noticed. The
Xet protocol, by which the real hub moves large files, is not spoken: clients set HF_HUB_DISABLE_XET=1.
"""
import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKENS = {'hf_writer':'write', 'hf_reader':'read'}


@dataclass
class Repo:
    "A repository: commits, each all files by path, and which commit a branch stands at."
    private:bool
    commits:dict[str,dict[str,bytes]] = field(default_factory=dict)
    branches:dict[str,str] = field(default_factory=dict)

    def commit(self, branch:str, files:dict[str,bytes])->str:
        "Add a commit; its id."
        oid = hashlib.sha1(f'{len(self.commits)} {sorted(files)}'.encode()).hexdigest()
        self.commits[oid],self.branches[branch] = files,oid
        return oid

    def at(self, revision:str)->str|None:
        "The commit that a branch or commit id means."
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    "What the server knows, what it was asked, and how it is told to fail."
    url:str = ''
    repos:dict[str,Repo] = field(default_factory=dict)
    objects:dict[str,bytes] = field(default_factory=dict)  # of git LFS, by sha256
    asked:list[tuple[str,str,str]] = field(default_factory=list) # method, path, token
    fail:dict[str,tuple[int,str]] = field(default_factory=dict)  # part of a path -> status and message


class Handler(BaseHTTPRequestHandler):
    "One request."
    protocol_version = 'HTTP/1.1'
    hub:Hub

    def log_message(self, *args): pass

    def answer(self, status=200, obj=None, body=b'', **headers):
        if obj is not None: body,headers = json.dumps(obj).encode(),{'Content-Type':'application/json'}|headers
        self.send_response(status)
        for k,v in ({'Content-Length':str(len(body))}|headers).items(): self.send_header(k.replace('_','-'), v)
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)

    def refuse(self, status, message, code=''):
        self.answer(status, dict(error=message), X_Error_Message=message, **({'X_Error_Code':code} if code else {}))

    def handle_one(self):
        path = unquote(urlsplit(self.path).path)
        data = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        token = self.headers.get('Authorization','').removeprefix('Bearer ')
        self.hub.asked.append((self.command,path,token))
        for part,(status,message) in self.hub.fail.items():
            if part in path: return self.refuse(status, message)
        if path.startswith('/lfs/'): return self.store(path, data)
        if token and token not in TOKENS: return self.refuse(401, 'Invalid credentials in Authorization header')
        for method,pattern,do,right in ROUTES:
            if method in (self.command,'GET' if self.command=='HEAD' else '') and (m := re.fullmatch(pattern,path)):
                if right=='write' and TOKENS.get(token)!='write':
                    return self.refuse(403, 'You have no write permission with this token') if token else self.refuse(401, 'Invalid username or password.')
                return do(self, data, token, **m.groupdict())
        self.refuse(404, f'no such call: {self.command} {path}')

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def repo(self, name, token):
        "The repository, if it is there for this token; a refusal has been sent otherwise."
        r = self.hub.repos.get(name)
        if r and not (r.private and not token): return r
        self.refuse(404 if token else 401, 'Repository not found', 'RepoNotFound')

    def commit_of(self, r, revision):
        oid = r.at(revision or 'main')
        if oid is None: self.refuse(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return oid

    def create(self, data, token):
        o = json.loads(data)
        name = f"{o['organization']}/{o['name']}"
        url = f'{self.hub.url}/{name}'
        if name in self.hub.repos: return self.answer(409, dict(error='You already created this model repo', url=url))
        r = self.hub.repos[name] = Repo(o.get('private',False) or o.get('visibility')=='private')
        r.commit('main', {'.gitattributes':b''})
        self.answer(obj=dict(url=url, name=name))

    def info(self, data, token, name, revision=None):
        if not (r := self.repo(name,token)) or not (oid := self.commit_of(r,revision)): return
        self.answer(obj=dict(id=name, sha=oid, private=r.private, siblings=[dict(rfilename=n) for n in r.commits[oid]]))

    def branch(self, data, token, name, revision):
        if not (r := self.repo(name,token)): return
        if revision in r.branches: return self.refuse(409, 'Reference already exists')
        r.branches[revision] = r.branches['main']
        self.answer(201, {})

    def tree(self, data, token, name, revision):
        if not (r := self.repo(name,token)) or not (oid := self.commit_of(r,revision)): return
        def entry(path, content):
            o = dict(type='file', path=path, size=len(content), oid=hashlib.sha1(b'blob %d\0'%len(content)+content).hexdigest())
            sha = hashlib.sha256(content).hexdigest()
            return o|dict(lfs=dict(oid=sha,size=len(content),pointerSize=100)) if sha in self.hub.objects else o
        self.answer(obj=[entry(n,c) for n,c in r.commits[oid].items()])

    def check_yaml(self, data, token):
        "The hub wants a licence that it knows."
        text = json.loads(data)['content']
        wrong = [dict(message='"license" must be one of the list')] if 'license: nonsense' in text else []
        self.answer(400 if wrong else 200, dict(errors=wrong, warnings=[]))

    def preupload(self, data, token, name, revision):
        if not self.repo(name,token): return
        files = json.loads(data)['files']
        large = ('.safetensors','.skops')
        self.answer(obj=dict(files=[dict(path=f['path'], shouldIgnore=False, uploadMode='lfs' if f['path'].endswith(large) else 'regular') for f in files]))

    def batch(self, data, token, name):
        if not self.repo(name,token): return
        todo = [(o,{} if o['oid'] in self.hub.objects else dict(actions=dict(upload=dict(href=f"{self.hub.url}/lfs/{o['oid']}"))))
                for o in json.loads(data)['objects']]
        self.answer(obj=dict(transfer='basic', objects=[o|more for o,more in todo]))

    def store(self, path, data):
        oid = path.removeprefix('/lfs/')
        if hashlib.sha256(data).hexdigest()!=oid: return self.refuse(422, 'content does not fit its hash')
        self.hub.objects[oid] = data
        self.answer()

    def commit(self, data, token, name, revision):
        if not (r := self.repo(name,token)) or not (oid := self.commit_of(r,revision)): return
        files = dict(r.commits[oid])
        for line in data.splitlines():
            o = json.loads(line)
            v = o['value']
            if o['key']=='file': files[v['path']] = base64.b64decode(v['content'])
            elif o['key']=='lfsFile': files[v['path']] = self.hub.objects[v['oid']]
            elif o['key']=='deletedFile': del files[v['path']]
        new = r.commit(revision, files)
        self.answer(obj=dict(commitUrl=f'{self.hub.url}/{name}/commit/{new}', commitOid=new, success=True))

    def download(self, data, token, name, revision, path):
        if not (r := self.repo(name,token)) or not (oid := self.commit_of(r,revision)): return
        if path not in r.commits[oid]: return self.refuse(404, 'Entry not found', 'EntryNotFound')
        content = r.commits[oid][path]
        self.answer(200, body=content, X_Repo_Commit=oid, ETag=f'"{hashlib.sha256(content).hexdigest()}"', Accept_Ranges='none')


NAME,REV = r'(?P<name>[\w.-]+/[\w.-]+)',r'(?P<revision>[^/]+)'
ROUTES = [
    ('POST','/api/repos/create',Handler.create,'write'), ('POST','/api/validate-yaml',Handler.check_yaml,'read'),
    ('GET',f'/api/models/{NAME}',Handler.info,'read'), ('GET',f'/api/models/{NAME}/revision/{REV}',Handler.info,'read'),
    ('POST',f'/api/models/{NAME}/branch/{REV}',Handler.branch,'write'), ('GET',f'/api/models/{NAME}/tree/{REV}',Handler.tree,'read'),
    ('POST',f'/api/models/{NAME}/preupload/{REV}',Handler.preupload,'write'), ('POST',f'/{NAME}.git/info/lfs/objects/batch',Handler.batch,'write'),
    ('POST',f'/api/models/{NAME}/commit/{REV}',Handler.commit,'write'), ('GET',f'/{NAME}/resolve/{REV}/(?P<path>.+)',Handler.download,'read')]


@contextmanager
def running_hub():
    "A hub on a free port of 127.0.0.1, stopped at the end."
    hub = Hub()
    server = ThreadingHTTPServer(('127.0.0.1',0), type('HubHandler',(Handler,),dict(hub=hub)))
    server.daemon_threads = True
    hub.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

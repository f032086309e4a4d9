(function(){
const main=document.querySelector('main'),seen=document.getElementById('seen');
async function fresh(){
  try{
    const answer=await fetch('part',{cache:'no-store',signal:AbortSignal.timeout(10000)});
    if(!answer.ok)throw answer.status;
    const text=await answer.text();
    if(!document.hidden&&text!==main.innerHTML&&!String(getSelection()))main.innerHTML=text;
    seen.textContent='refreshed every 5 s';seen.className='soft';
  }catch(problem){seen.textContent='no answer from this instance: what stands here is old';seen.className='bad';}
  setTimeout(fresh,5000);
}
setTimeout(fresh,5000);
})();

(function(){
const main=document.querySelector('main'),seen=document.getElementById('seen');
async function refresh(){
  try{
    const response=await fetch('part',{cache:'no-store',signal:AbortSignal.timeout(10000)});
    if(!response.ok)throw response.status;
    const text=await response.text();
    if(!document.hidden&&text!==main.innerHTML&&!String(getSelection()))main.innerHTML=text;
    seen.textContent='refreshed every 5 s';seen.className='soft';
  }catch(problem){seen.textContent='no response from this instance: this page is out of date';seen.className='bad';}
  setTimeout(refresh,5000);
}
setTimeout(refresh,5000);
})();
